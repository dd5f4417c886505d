"""The layout is chosen before pods are made; what the trainer is told leaves nothing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainer import planned
from trainer.config import load
from trainyard.api.train import TrainConfig
from trainyard.build import read_rendering, render, rendering_configmap
from trainyard.build.planning import plan_layout
from trainyard.layout import InvalidLayout, LayoutDoesNotFit
from unit.build.jobs import JOB, SETTINGS, TRAIN, command_job, train_job

NPUS = {"resource": "huawei.com/Ascend910", "perNode": 8}


def large(**train: Any) -> dict[str, Any]:
    return {**TRAIN, "model": {"size": "7b"}, "batchSize": 512, **train}


def test_everything_is_set_and_the_status_says_why() -> None:
    train, status, _ = plan_layout(train_job(train=large(), numNodes=4, devices=NPUS))
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
    train, status, _ = plan_layout(train_job(train=large(parallel={"tensor": 4}, microBatchSize=2), devices=NPUS))
    assert train is not None
    assert train.parallel.tensor == 4
    assert train.micro_batch_size == 2
    assert status is not None
    assert status.tensor == 4


def test_the_agents_word_decides_the_device() -> None:
    _, status, _ = plan_layout(train_job(train=large(), numNodes=4, devices=NPUS), "910A")
    assert status is not None
    assert (status.explanation or "").startswith("On 910A: ")


def test_refusals() -> None:
    with pytest.raises(LayoutDoesNotFit, match="Would fit: "):
        plan_layout(train_job(train=large(model={"size": "70b"}), numNodes=1, devices=NPUS))
    with pytest.raises(InvalidLayout, match=r"train\.parallel\.tensor: 3"):
        plan_layout(train_job(train=large(parallel={"tensor": 3}), numNodes=3, devices=NPUS))


def test_only_the_files_know_the_model() -> None:
    job = train_job(train={**TRAIN, "model": {"path": "/models/llama"}})
    assert plan_layout(job) == (job.train, None, 0)
    assert plan_layout(command_job()) == (None, None, 0)


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
