"""Every layout trains like one process: loss, gradient norm and every parameter's gradient, step by step.

Bounds: fp32 sums made in another order. The loss of 5.7 has steps of 4.8e-7; gradients are compared with the largest
number of their parameter. Seen at worst: see docs/parallel.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parity.compare import run

LOSS = 3e-6
GRADIENT = 1e-4

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {"shard": 2}),
    (2, {"shard": 2, "zero": 2}),
    (2, {"data": 2}),
    (4, {"data": 2, "shard": 2}),
    (4, {"data": 2, "shard": 2, "zero": 2}),
    (2, {"tensor": 2}),
    (4, {"tensor": 4}),
    (4, {"tensor": 2, "shard": 2}),
    (4, {"tensor": 2, "data": 2}),
    (8, {"tensor": 2, "data": 2, "shard": 2}),
]


def name_of(case: Any) -> str:
    if isinstance(case, dict):
        return " ".join(f"{key}{value}" for key, value in case.items()) or "one"
    return str(case)


@pytest.fixture(scope="session")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where references are kept."""
    return tmp_path_factory.mktemp("truths")


@pytest.mark.parametrize(("ranks", "parallel"), LAYOUTS, ids=name_of)
def test_layout(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any]) -> None:
    off = run(tmp_path, truths, ranks, parallel=parallel)
    print(off.text)
    assert off.within(LOSS, GRADIENT), off.text


@pytest.mark.parametrize("damage_of", [
    (4, {"data": 2, "shard": 2}, "no_reduce_of_replicas"),
    (2, {"shard": 2}, "wrong_scale"),
    (2, {"shard": 2}, "same_samples_everywhere"),
    (2, {"tensor": 2}, "no_reduce_in_attention"),
    (2, {"tensor": 2}, "norms_counted_by_every_rank"),
    (2, {"tensor": 2}, "loss_of_a_part_of_the_vocabulary"),
    (1, {}, "dead_embedding"),
], ids=lambda case: case[2])
def test_a_broken_layout_is_noticed(tmp_path: Path, truths: Path, damage_of: tuple[int, dict[str, Any], str]) -> None:
    ranks, parallel, damage = damage_of
    off = run(tmp_path, truths, ranks, damage, parallel=parallel)
    print(off.text)
    assert not off.within(LOSS * 10, GRADIENT * 10), off.text
