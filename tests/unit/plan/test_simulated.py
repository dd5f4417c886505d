"""Whatever happens to a job in the simulated cluster: when it stops happening, the job succeeds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.plan.builders import condition
from unit.plan.simulator import Cluster

INFRASTRUCTURE = ("vanish", "exit", "refuse", "delete", "flap", "node", "device")
OPERATOR = ("operator", "lost write", "world")
ALL = (*INFRASTRUCTURE, *OPERATOR, "late device", "rank", "suspend", "resume", "config map")


def run(cluster: Cluster, faults: list[tuple[str, int, int]], limit: int = 2500) -> Cluster:
    """Faults as (kind, index, ticks before it), then peace until the job has ended."""
    schedule, due = list(faults), faults[0][2] if faults else 0
    for _ in range(limit):
        while schedule and due <= 0:
            kind, index, _ = schedule.pop(0)
            cluster.break_(kind, index)
            due = schedule[0][2] if schedule else 0
        due -= 1
        if not schedule and cluster.job.suspend:
            cluster.break_("resume", 0)
        cluster.tick()
        cluster.reconcile()
        if not schedule and condition(cluster.status, "Succeeded")[0] == "True":
            return cluster
        assert condition(cluster.status, "Failed")[0] != "True", condition(cluster.status, "Failed")
    raise AssertionError(f"no end: {cluster.status.dump()} {cluster.world}")


def faults_of(
    kinds: tuple[str, ...], most: int = 8, gap: tuple[int, int] = (0, 25)
) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 3), st.integers(*gap)), max_size=most)


def test_an_undisturbed_job_needs_few_writes() -> None:
    cluster = run(Cluster(), [])
    assert cluster.status.restarts.total == 0
    assert cluster.world is not None
    assert cluster.world.spec.generation == 1
    assert cluster.writes <= 4  # made, master, address, Done


@settings(max_examples=40, deadline=None)
@given(faults_of(ALL), st.sampled_from([0, 1, 2]), st.sampled_from([3, 3, 2, 1]), st.sampled_from([True, True, False]))
def test_it_always_ends_well(faults: list[tuple[str, int, int]], spares: int, least: int, tells: bool) -> None:
    cluster = run(Cluster(spares=spares, least=least, tells=tells), faults)
    assert cluster.acted <= 40 + 40 * (len(faults) + spares)
    # A pod that went with its node before its device was known leaves nothing that tells the cause.
    assert cluster.status.restarts.counted <= cluster.roots + cluster.again + cluster.late
    assert cluster.status.restarts.total <= len(faults)


@settings(max_examples=20, deadline=None)
@given(faults_of((*INFRASTRUCTURE, *OPERATOR)))
def test_infrastructure_never_counts(faults: list[tuple[str, int, int]]) -> None:
    """But for containers that end by themselves in a pod that is a replacement already."""
    cluster = run(Cluster(), faults)
    assert cluster.status.restarts.counted <= cluster.again


@settings(max_examples=20, deadline=None)
@given(faults_of(("device", "late device", "lost write")))
@example([("late device", 1, 4), ("device", 0, 1)])  # both are told at once, and one was counted
def test_devices_never_count_even_if_their_ranks_fail_first(faults: list[tuple[str, int, int]]) -> None:
    cluster = run(Cluster(), faults)
    assert cluster.status.restarts.counted == 0
    assert cluster.status.restarts.total <= len(faults)


@settings(max_examples=15, deadline=None)
@given(faults_of(("rank", "operator", "lost write"), gap=(8, 20)))
def test_every_root_counts_once(faults: list[tuple[str, int, int]]) -> None:
    cluster = run(Cluster(), faults)
    assert cluster.status.restarts.counted == cluster.roots
    assert cluster.status.restarts.total == cluster.roots


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("at", [0, 2, 4, 6, 12])
@pytest.mark.parametrize("index", [0, 1])
def test_one_fault(kind: str, at: int, index: int) -> None:
    cluster = run(Cluster(), [(kind, index, at)])
    assert cluster.status.restarts.total <= 1


@settings(max_examples=8, deadline=None)
@given(faults_of(("vanish", "exit", "delete", "flap", "lost write"), most=5), st.sampled_from([1, 2]))
@example([], 2)
@example([("exit", 0, 5)], 1)  # what has ended by itself is kept, on its node
def test_spares_end_up_on_nodes_without_members(faults: list[tuple[str, int, int]], spares: int) -> None:
    """At first there are as many nodes as members, with room for two pods each, and soon enough for all."""
    cluster = Cluster(spares=spares, room=2, steps=350)
    for node in ("n3", "n4", "n5"):
        cluster.silent[node], cluster.since[node] = 40, cluster.now
    run(cluster, faults)
    moved = [at for at, why in cluster.told if why == "SpareMoved"]
    assert all((later - earlier).total_seconds() >= 60 for earlier, later in itertools.pairwise(moved))
    if not faults:
        assert len(moved) == spares
    assert cluster.world is not None
    alive = [pod.view for pod in cluster.pods.values() if not pod.view.ended]
    members = {pod.node for pod in alive if pod.index in cluster.world.spec.members}
    beside = {pod.node for pod in alive if pod.index not in cluster.world.spec.members}
    assert not members & beside, f"moved at {moved}"
