"""Replicas of the layout as copies: who they are, who needs a buddy besides, and what a state is recalled from."""

from __future__ import annotations

from typing import Any

import pytest
from trainer.checkpoint.buddies import Buddies
from trainer.checkpoint.recall import complete
from trainer.checkpoint.replicas import Replicas
from trainer.parallel.layout import Layout


@pytest.mark.parametrize(("layout", "rank", "everybody"), [
    (Layout(shard=4), 2, [2]),
    (Layout(data=2, shard=2), 1, [1, 3]),
    (Layout(data=2, shard=2), 2, [0, 2]),
    (Layout(data=2, shard=2, tensor=2), 5, [1, 5]),
    (Layout(data=2, shard=1, pipeline=2), 3, [2, 3]),  # the other stage is not the same
    (Layout(data=3, shard=1, context=2), 3, [1, 3, 5]),
])  # fmt: skip
def test_replicas_differ_in_data_only(layout: Layout, rank: int, everybody: list[int]) -> None:
    replicas = Replicas.of_layout(layout)
    assert [*replicas.all(rank)] == everybody
    assert replicas.first(rank) == everybody[0]


@pytest.mark.parametrize(("hosts", "found"), [("aabb", [{"b"}, {"b"}, {"a"}, {"a"}]), ("abab", [set()] * 4)])
def test_only_other_nodes_count(hosts: str, found: list[set[str]]) -> None:
    replicas = Replicas(count=2, stride=2)
    assert [replicas.hosts(rank, hosts) for rank in range(4)] == found


def test_a_buddy_is_where_no_replica_is() -> None:
    replicas = Replicas(count=2, stride=1)  # 0 and 1, 2 and 3
    buddies = Buddies([0, 1, 2, 3], "abcd", 1, replicas=replicas)
    assert [buddies.of(rank) for rank in range(4)] == [[2], [2], [0], [0]]


def entry(rank: int, kind: str = "own", step: int = 5, replicas: Any = (2, 2), **other: Any) -> dict[str, Any]:
    return {"kind": kind, "name": f"{rank}.0", "layout": "l", "rank": rank, "step": step, "run": "1", "number": rank,
            "world": 4, "model": "m", "replicas": replicas, **other}


def test_a_rank_without_copies_has_its_replicas() -> None:
    [found] = complete([("pod-1", entry(2)), ("pod-1", entry(3))])
    assert [[source.rank for source in sources] for sources in found.sources] == [[2], [3], [2], [3]]


def test_its_own_come_first() -> None:
    there = [("pod-0", entry(0)), ("pod-1", entry(2)), ("pod-1", entry(0, "held")), ("pod-1", entry(3))]
    [found] = complete(there)
    assert [(source.rank, source.kind) for source in found.sources[2]] == [(2, "own"), (0, "own"), (0, "held")]
    assert [(source.rank, source.kind) for source in found.sources[0]] == [(0, "own"), (0, "held"), (2, "own")]


def test_a_state_that_nobody_has_is_not_made_up() -> None:
    assert complete([("pod-1", entry(2)), ("pod-0", entry(0))]) == []
    assert complete([("pod-1", entry(rank, replicas=(1, 1))) for rank in (2, 3)]) == []
