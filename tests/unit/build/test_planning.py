"""The layout is chosen before pods are made; what the trainer is told leaves nothing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainer import planned
from trainer.config import load
from trainer.errors import ConfigError
from trainyard.api.job import TrainingJobSpec
from trainyard.api.train import TrainConfig
from trainyard.build import read_rendering, render, rendering_configmap
from trainyard.build.planning import plan_layout
from trainyard.build.template import CONFIG_VOLUME
from trainyard.layout import InvalidLayout, LayoutDoesNotFit
from unit.build.jobs import JOB, SETTINGS, TRAIN, command_job, train_job

NPUS = {"resource": "huawei.com/Ascend910", "perNode": 8}


def large(**train: Any) -> dict[str, Any]:
    return {**TRAIN, "model": {"size": "7b"}, "batchSize": 512, **train}


def test_everything_is_set_and_the_status_says_why() -> None:
    train, status, *_ = plan_layout(train_job(train=large(), numNodes=4, devices=NPUS))
    assert train is not None
    assert status is not None
    assert planned.is_settled(TrainConfig.model_validate(train.dump()), 32)
    assert status.data is not None
    assert status.shard is not None
    assert status.data * status.shard * status.tensor * status.pipeline * status.context == 32  # type: ignore[operator]
    assert float(status.seconds_per_step or 0) > 0
    assert float((status.memory_per_device or "").removesuffix("Gi")) < 64
    assert (status.explanation or "").startswith("On 910B: ")


def test_what_is_set_is_kept() -> None:
    train, status, *_ = plan_layout(train_job(train=large(parallel={"tensor": 4}, microBatchSize=2), devices=NPUS))
    assert train is not None
    assert train.parallel.tensor == 4
    assert train.micro_batch_size == 2
    assert status is not None
    assert status.tensor == 4


def test_the_agents_word_decides_the_device() -> None:
    _, status, *_ = plan_layout(train_job(train=large(), numNodes=4, devices=NPUS), "910A")
    assert status is not None
    assert (status.explanation or "").startswith("On 910A: ")


def test_refusals() -> None:
    with pytest.raises(LayoutDoesNotFit, match="Would fit: "):
        plan_layout(train_job(train=large(model={"size": "70b"}), numNodes=1, devices=NPUS))
    with pytest.raises(InvalidLayout, match=r"train\.parallel\.tensor: 3"):
        plan_layout(train_job(train=large(parallel={"tensor": 3}), numNodes=3, devices=NPUS))


def test_only_the_files_know_the_model() -> None:
    job = train_job(train={**TRAIN, "model": {"path": "/models/llama"}})
    assert plan_layout(job) == (job.train, None, 0, ())
    assert plan_layout(command_job()) == (None, None, 0, ())


def test_a_gang_of_another_size_plans_anew(tmp_path: Path) -> None:
    rendered = render(JOB, train_job(train={**TRAIN, "batchSize": 12}, numNodes=4), SETTINGS)
    kept = rendering_configmap(rendered)
    assert read_rendering(kept) == rendered
    for name in ("train.json", "asked.json"):
        (tmp_path / name).write_text(kept["data"][name])
    told = json.loads(kept["data"]["train.json"])

    def loaded(ranks: int) -> TrainConfig:
        environment = {"RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": "1"}
        return load(["--config", str(tmp_path / "train.json")], environment)[0]

    assert loaded(4).dump() == told
    smaller = loaded(3)
    assert planned.is_settled(smaller, 3)
    assert smaller.batch_size == 12


def autotuned(**fields: Any) -> TrainingJobSpec:
    return train_job(train=large(autotune=True), numNodes=4, devices=NPUS, **fields)


def test_layouts_to_measure_go_with_the_configuration(tmp_path: Path) -> None:
    rendered = render(JOB, autotuned(), SETTINGS)
    kept = rendering_configmap(rendered)
    assert read_rendering(kept) == rendered
    volume = next(each for each in rendered.template["spec"]["volumes"] if each["name"] == CONFIG_VOLUME)
    for name in [item["key"] for item in volume["configMap"]["items"]]:
        (tmp_path / name).write_text(kept["data"][name])
    environment = {"RANK": "0", "WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8", "TRAINYARD_TUNED": "x"}
    train, run = load(["--config", str(tmp_path / "train.json")], environment)
    assert rendered.layout is not None
    assert [each.name for each in run.candidates] == [each.name for each in rendered.layout.candidates or ()]
    assert len(run.candidates) > 1
    assert train == run.candidates[0].train
    assert run.tuned == "x"
    (tmp_path / "candidates.json").write_text("[{}]")
    with pytest.raises(ConfigError, match=r"candidates\.json should hold layouts"):
        load(["--config", str(tmp_path / "train.json")], environment)


def test_all_that_is_measured_could_go_on_with_fewer_nodes() -> None:
    layout = plan_layout(autotuned(minNodes=3)).layout
    assert layout is not None
    assert len(layout.candidates or ()) > 1
    for each in layout.candidates or ():
        assert 24 % ((each.tensor or 1) * (each.pipeline or 1) * (each.context or 1)) == 0


def test_nothing_to_measure() -> None:
    one = large(autotune=True, microBatchSize=1, activationCheckpointing="full", parallel={
        "data": 1, "shard": 32, "tensor": 1, "pipeline": 1, "context": 1})
    planned_ = plan_layout(train_job(train=one, numNodes=4, devices=NPUS))
    assert planned_.layout is not None
    if planned_.candidates:
        assert {each.train.parallel.zero for each in planned_.candidates} == {2, 3}
    set_ = {**one["parallel"], "zero": 3}
    with pytest.raises(InvalidLayout, match=r"train\.autotune"):
        plan_layout(train_job(train={**one, "parallel": set_}, numNodes=4, devices=NPUS))


def test_by_hand_the_trainer_plans_what_to_measure(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    asked = {**TRAIN, "autotune": True, "batchSize": 8}
    file.write_text(json.dumps(asked))
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    train, run = load(["--config", str(file)], environment)
    assert len(run.candidates) > 1
    assert train == run.candidates[0].train
    file.write_text(json.dumps({**train.dump(), "autotune": True}))
    with pytest.raises(ConfigError, match=r"train\.autotune: there is nothing to choose"):
        load(["--config", str(file)], environment)
