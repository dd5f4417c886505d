"""Whole runs in other layouts: evaluation, export, and checkpoints that move between them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from train.gang import Ended, Gang, train

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
