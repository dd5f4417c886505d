"""A rank that is slow at its own work is named, however the others wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train.gang import Gang

# One rank needs longer for every layer it computes; clocks that run faster than the product's.
SLOWED = """
import os, runpy, sys, time
from trainer import stragglers
stragglers.EVERY, stragglers.FOR = 0.5, 2.0
from transformers.models.llama.modeling_llama import LlamaMLP
compute = LlamaMLP.forward
def slow(self, hidden):
    if os.environ["RANK"] == os.environ["SLOW_RANK"]:
        time.sleep(0.5)
    return compute(self, hidden)
LlamaMLP.forward = slow
sys.argv = ["trainer"]
runpy.run_module("trainer", run_name="__main__")
"""


@pytest.mark.parametrize(("ranks", "slow", "parallel"), [
    (2, 1, {"shard": 2}), (2, 0, {"data": 2}), (2, 1, {"tensor": 2}), (2, 1, {"context": 2, "ulysses": 1}),
    (4, 3, {"pipeline": 2, "data": 2}),
], ids=str)  # fmt: skip
def test_it_is_named_in_every_layout(tmp_path: Path, config: dict[str, Any], ranks: int, slow: int,
                                     parallel: dict[str, int]) -> None:
    config.update(steps=1000, export=False, microBatchSize=2, parallel=parallel)
    with Gang(tmp_path, [config] * ranks, program=["-c", SLOWED], environment={"SLOW_RANK": str(slow)}) as gang:
        found = gang.wait_for(lambda progress: bool(progress.get("warnings")), 60)
    assert found["warnings"][0]["reason"] == "Straggler"
    assert f"rank {slow} (" in found["warnings"][0]["message"]


def test_it_leaves_where_it_is_to_be_replaced(tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=1000, export=False, microBatchSize=2, parallel={"shard": 2})
    with Gang(tmp_path, [config] * 2, program=["-c", SLOWED],
              environment={"SLOW_RANK": "1", "TRAINYARD_STRAGGLERS": "Replace"}) as gang:
        ended = gang.wait(60)
        reason = gang.reason(1)
    assert ended.codes[1] == 76, ended.text
    assert "straggler: rank 1 (" in reason
