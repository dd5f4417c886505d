"""Which layouts are measured, and which of them is taken."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from trainyard.layout import InvalidLayout, choose
from trainyard.layout.autotune import FAR, MOST, Measured, as_candidates, candidates, check, read, winner
from trainyard.layout.choose import SAME, mesh_of
from unit.layout.workloads import train, workload


@pytest.mark.parametrize(("times", "chosen"), [
    ([1.0, 2.0, 3.0], "0"),
    ([2.0, 1.0, 3.0], "1"),
    ([1.04, 1.0, 3.0], "0"),  # a tie goes to the planner's order
    ([1.06, 1.04, 1.0], "1"),  # what counts is the distance to the fastest
    ([None, 2.0, 1.99], "1"),
    ([None, None, 9.0], "2"),
    ([None, None], None),
    ([], None),
])
def test_the_fastest_wins(times: list[float | None], chosen: str | None) -> None:
    rows = [Measured(str(number), seconds, "" if seconds else "no memory") for number, seconds in enumerate(times)]
    assert winner(rows) == chosen


@pytest.mark.parametrize(("size", "ranks", "device"), [("7b", 32, "910B"), ("70b", 512, "910B"), ("13b", 64, "A100"),
                                                       (None, 2, "CPU"), (None, 8, "CPU")])
def test_candidates_are_few_distinct_and_fit(size: str | None, ranks: int, device: str) -> None:
    ranking = choose(workload(size, ranks, device, min(ranks, 8), batchSize=ranks * 4, sequence=1024))
    found = candidates(ranking)
    assert found[0] == ranking.best
    assert 2 <= len(found) <= MOST
    assert all(each.fits for each in found)
    times = [each.seconds.total for each in found]
    assert times[1:] == sorted(times[1:])
    ordered = sorted(times)
    assert all(later > before * (1 + SAME) for before, later in pairwise(ordered))
    assert ordered[-1] <= FAR * times[0]
    assert all([mesh_of(each.layout) for each in found].count(mesh_of(one.layout)) <= 2 for one in found)


def test_what_else_is_asked_of_a_layout() -> None:
    ranking = choose(workload("7b", 32, batchSize=128))
    assert any(each.layout.context > 1 for each in candidates(ranking))
    found = candidates(ranking, lambda layout: layout.context == 1)
    assert len(found) == MOST
    assert all(each.layout.context == 1 for each in found)


def test_configurations_are_named_and_read_back() -> None:
    work = workload("7b", 32, batchSize=128)
    asked = train("7b", batchSize=128, autotune=True)
    made = as_candidates(asked, work, candidates(choose(work)))
    assert len({each.name for each in made}) == len(made)
    assert read(asked, json.loads(json.dumps([each.dump() for each in made]))) == made
    assert all(each.train.autotune and each.train.batch_size == 128 for each in made)


def test_nothing_to_choose() -> None:
    set_ = {"data": 1, "shard": 8, "tensor": 1, "pipeline": 1, "context": 1, "zero": 3}
    with pytest.raises(InvalidLayout, match=r"train\.autotune: there is nothing to choose.*leave fields"):
        check(choose(workload("7b", 8, parallel=set_, microBatchSize=1, activationCheckpointing="full")))
    check(choose(workload("7b", 8, parallel=set_, activationCheckpointing="full", batchSize=16)))
    alone = choose(workload("7b", 8, parallel=set_, activationCheckpointing="full", batchSize=16))
    assert as_candidates(train("7b"), alone.work, candidates(alone)[:1]) == ()
