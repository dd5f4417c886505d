"""Experts that have moved: what is saved finds them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.gang import train
from train.test_expert_load import MOVES, skewed  # noqa: F401  (a fixture)


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
