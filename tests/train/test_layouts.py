"""Whole runs in other layouts: evaluation, export, and checkpoints that move between them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from train.gang import Ended, Gang, train
from trainer.model import build, shape, weights
from trainyard.api.train import ModelConfig
from transformers import MixtralForCausalLM

CHAIN: list[tuple[int, dict[str, Any]]] = [
    (2, {"shard": 2}),
    (4, {"pipeline": 2, "tensor": 2}),
    (4, {"context": 4, "ulysses": 2}),
    (4, {"pipeline": 2, "data": 2, "schedule": "ZBV"}),
    (4, {"context": 2, "tensor": 2}),
    (2, {"pipeline": 2, "stageLayers": [3, 1]}),
    (1, {}),
    (4, {"pipeline": 2, "tensor": 2}),
]
STEPS = 2  # in each
EVALUATION = re.compile(r"^step (\d+)/\d+ evaluation loss (\S+)", re.MULTILINE)


def evaluations(ended: Ended) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in EVALUATION.findall(ended.out[0])}


@pytest.fixture
def spread(config: dict[str, Any], corpus: Path) -> dict[str, Any]:
    """A config whose learning rate does not depend on the number of steps."""
    config["model"]["config"]["num_hidden_layers"] = 4
    config["optimizer"].update(warmupSteps=1, minLearningRate=config["optimizer"]["learningRate"])
    config["evaluate"] = {"every": STEPS, "steps": 1, "data": [{"path": str(corpus / "held-out.txt")}]}
    return config


def test_checkpoints_move_through_layouts(tmp_path: Path, spread: dict[str, Any]) -> None:
    """Each layout goes on from the checkpoint of the one before it; all together train like one process."""
    spread["steps"] = STEPS * len(CHAIN)
    alone = train(tmp_path / "alone", spread, 1, checkpoint=tmp_path / "alone-ck")
    assert alone.codes == [0], alone.text
    found: dict[int, float] = {}
    validation: dict[int, float] = {}
    for link, (ranks, parallel) in enumerate(CHAIN):
        now = {**spread, "parallel": parallel, "steps": STEPS * (link + 1), "export": link == len(CHAIN) - 1}
        with Gang(tmp_path / str(link), [now] * ranks, checkpoint=tmp_path / "ck", generation=str(link + 1)) as gang:
            ended = gang.wait()
            told = gang.progress()
        assert ended.codes == [0] * ranks, ended.text
        assert sorted(ended.losses) == [STEPS * link + 1, STEPS * link + 2]
        sizes = ("data", "shard", "tensor", "pipeline", "context", "expert")
        assert [told[name] for name in sizes] == [parallel.get(name, 1) for name in sizes]
        found.update({step: float(loss) for step, loss in ended.losses.items()})
        validation.update(evaluations(ended))
    assert found == pytest.approx({step: float(loss) for step, loss in alone.losses.items()}, abs=1e-4)
    assert validation == pytest.approx(evaluations(alone), abs=1e-4)
    ours, theirs = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("ck", "alone-ck"))
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert tensor == pytest.approx(ours[name], abs=2e-3), name
    exported = json.loads((tmp_path / "ck" / "export" / "config.json").read_text())
    assert "trainyard" not in json.dumps(exported)


EXPERTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"shard": 2, "expert": 2}), (4, {"pipeline": 2, "shard": 2, "expert": 2}), (1, {}),
    (2, {"tensor": 2, "expert": 2}), (4, {"data": 2, "shard": 2, "expert": 2}), (2, {"shard": 2})]


def test_experts_move_through_layouts(tmp_path: Path, spread: dict[str, Any]) -> None:
    """Checkpoints of a mixture are gone on from with its experts elsewhere; its export is read by transformers and by
    the trainer."""
    spread.update(batchSize=4, microBatchSize=1, steps=STEPS * len(EXPERTS))
    spread["model"].update(family="mixtral", size="tiny")
    spread["model"]["config"].update(num_hidden_layers=2, num_local_experts=4, router_aux_loss_coef=0.0)
    alone = train(tmp_path / "alone", spread, 1, checkpoint=tmp_path / "alone-ck")
    assert alone.codes == [0], alone.text
    found: dict[int, float] = {}
    for link, (ranks, parallel) in enumerate(EXPERTS):
        now = {**spread, "parallel": parallel, "steps": STEPS * (link + 1), "export": link == len(EXPERTS) - 1}
        ended = train(tmp_path / str(link), now, ranks, checkpoint=tmp_path / "ck", generation=str(link + 1))
        assert ended.codes == [0] * ranks, ended.text
        found.update({step: float(loss) for step, loss in ended.losses.items()})
    assert found == pytest.approx({step: float(loss) for step, loss in alone.losses.items()}, abs=1e-4)
    folder = tmp_path / "ck" / "export"
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "alone-ck/export/model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in ours
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert tensor == pytest.approx(ours[name], abs=2e-3), name
    loaded, report = MixtralForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    own = build.on_meta(build.complete(shape.fields(ModelConfig.model_validate({"family": "mixtral",
                                                                                "path": str(folder)}))))
    weights.materialise(own, torch.device("cpu"))
    weights.read(own, folder)
    for name, parameter in own.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


@pytest.mark.parametrize(("ranks", "parallel"), [
    (4, {"pipeline": 2, "tensor": 2}), (4, {"context": 2, "ulysses": 1, "shard": 2})])
def test_resumed_in_the_same_layout_every_digit_is_the_same(tmp_path: Path, spread: dict[str, Any], ranks: int,
                                                           parallel: dict[str, Any]) -> None:
    spread.update(parallel=parallel, steps=6, export=False)
    never = train(tmp_path / "never", spread, ranks, checkpoint=tmp_path / "never-ck")
    assert never.codes == [0] * ranks, never.text
    first = train(tmp_path / "first", {**spread, "steps": 3}, ranks, checkpoint=tmp_path / "ck")
    assert first.codes == [0] * ranks, first.text
    second = train(tmp_path / "second", spread, ranks, checkpoint=tmp_path / "ck", generation="2")
    assert second.codes == [0] * ranks, second.text
    assert {**first.losses, **second.losses} == never.losses
    assert evaluations(second)[6] == evaluations(never)[6]


def test_saved_after_an_evaluation_and_without(tmp_path: Path, spread: dict[str, Any]) -> None:
    """An evaluation leaves FSDP2 with whole parameters (ZeRO-2, and the embedding always): what is saved is shards."""
    spread.update(parallel={"shard": 2}, steps=7, export=False)
    spread["evaluate"]["every"] = 3
    ended = train(tmp_path / "run", spread, 2, checkpoint=tmp_path / "ck", every=2)
    assert ended.codes == [0, 0], ended.text
    assert "could not be saved" not in ended.out[0]
    again = train(tmp_path / "again", {**spread, "steps": 8}, 2, checkpoint=tmp_path / "ck", generation="2")
    assert "resumed after step 7" in again.text
