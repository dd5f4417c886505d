"""Experts that have moved: what is saved finds them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.gang import Gang, train
from train.test_expert_load import MOVES, skewed  # noqa: F401  (a fixture)
from train.test_memory_copies import Pods, pods  # noqa: F401  (a fixture)


def test_checkpoints_carry_places(tmp_path: Path, skewed: dict[str, Any]) -> None:  # noqa: F811
    """What was saved after experts had moved is gone on from by one process."""
    skewed["optimizer"] |= {"learningRate": 3e-3, "minLearningRate": 3e-3}
    experts = {"parallel": {"shard": 2, "expert": 2}, "experts": {"moveEvery": 1}}
    alone = train(tmp_path / "alone", {**skewed, "steps": 6, "export": True}, 1, checkpoint=tmp_path / "alone-ck")
    first = train(tmp_path / "first", {**skewed, **experts, "steps": 3}, 2, checkpoint=tmp_path / "ck")
    assert MOVES.findall(first.out[0]), first.text
    marker = json.loads((tmp_path / "ck" / "step-3.g1" / "COMMITTED.json").read_text())
    assert marker["version"] == 2
    second = train(tmp_path / "second", {**skewed, "steps": 6, "export": True}, 1, checkpoint=tmp_path / "ck",
                   generation="3")
    assert "resumed after step 3 from step-3.g1" in second.out[0], second.text
    right = {step: float(loss) for step, loss in alone.losses.items()}
    for one in (first, second):
        assert {step: float(loss) for step, loss in one.losses.items()} == pytest.approx(
            {step: right[step] for step in one.losses}, abs=1e-4)
    assert [*first.losses, *second.losses] == [1, 2, 3, 4, 5, 6]
    ours, theirs = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("ck", "alone-ck"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("lost", [False, True], ids=["ranks", "pod"])
def test_copies_in_memory_carry_places(tmp_path: Path, skewed: dict[str, Any], pods: Pods, lost: bool) -> None:  # noqa: F811
    """Ranks, or a pod with its memory, are lost after experts have moved: every digit is that of the run without."""
    pods.ranks_each = 1
    steps = 30
    asked = {**skewed, "steps": steps, "parallel": {"shard": 2, "expert": 2}, "experts": {"moveEvery": 1}}
    right = train(tmp_path / "right", asked, 2).losses
    with Gang(tmp_path / "first", [asked] * 2, of_rank=pods.environment()) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 3)
        ended = gang.kill()
    assert MOVES.findall(ended.out[0]), ended.text
    if lost:
        pods.replace(1)
    with Gang(tmp_path / "second", [asked] * 2, generation="2", of_rank=pods.environment()) as gang:
        ended = gang.wait()
    assert ended.codes == [0, 0], ended.text
    assert "copies in memory" in ended.out[0], ended.text
    assert ended.losses
    assert min(ended.losses) > 3
    assert ended.losses == {step: right[step] for step in ended.losses}
