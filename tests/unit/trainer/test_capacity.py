"""Which tokens an expert keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from trainer.parallel import capacity


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def by_sorting(chosen: list[int], weights: list[float], most: int) -> list[bool]:
    order = sorted(range(len(chosen)), key=lambda place: (chosen[place], -weights[place], place))
    before = {place: sum(chosen[other] == chosen[place] for other in order[:number])
              for number, place in enumerate(order)}
    return [before[place] < most for place in range(len(chosen))]


@pytest.mark.parametrize("most", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("kinds", [2, 5, 100000])  # of weights: few of them are equal often
def test_the_heaviest_stay(most: int, kinds: int) -> None:
    generator = torch.Generator().manual_seed(kinds)
    chosen = torch.randint(0, 5, (200,), generator=generator)
    chosen[chosen == 3] = 1  # one expert is idle, one busy
    weights = torch.randint(0, kinds, (200,), generator=generator) / (kinds - 1)  # 0 and 1 among them
    found = capacity.kept(chosen, weights, 6, most)
    assert found.tolist() == by_sorting(chosen.tolist(), weights.tolist(), most)


def test_weights_that_are_no_numbers_end_nothing() -> None:
    """The loss is not finite either: the loop deals with the batch."""
    weights = torch.tensor([float("nan"), -float("nan"), 0.5, 1.5])
    assert capacity.kept(torch.tensor([0, 1, 0, 1]), weights, 2, 2).all()


def test_no_tokens() -> None:
    assert capacity.kept(torch.zeros(0, dtype=torch.int64), torch.zeros(0), 4, 3).tolist() == []


@pytest.mark.parametrize(("factor", "assignments", "experts", "most"), [
    (1.0, 512, 4, 128), (1.25, 10, 4, 4), (0.001, 10, 4, 1), (1.0, 0, 4, 0)])
def test_limit(factor: float, assignments: int, experts: int, most: int) -> None:
    assert capacity.limit(factor, assignments, experts) == most
