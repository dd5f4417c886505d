"""Pods that their peers have lost."""

from __future__ import annotations

import pytest
from trainyard.api.protocol import RankProgress
from trainyard.plan.times import fine_stamp
from trainyard.plan.types import PutWorld
from unit.plan.builders import Case, of_type, rank_failure, training, world_of


def progress(step: int) -> RankProgress:
    """Rank 0 at this step, a second a step."""
    return RankProgress.model_validate({"step": step, "steps": 100, "seconds_per_step": "1.0"})


def accused(nodes: int = 3, by: int = 0, lost: tuple[int, ...] = (1,), step: int = 20) -> Case:
    """A job that trains, 10 s after its last step; a pod has just lost others."""
    case = training(nodes).after(10)
    told = {"lost": list(lost), "lost_at": fine_stamp(case.snap.now), "progress": progress(step) if by == 0 else None}
    return case.report(by, "PeerLost", **told)


def acts(case: Case) -> bool:
    return bool(of_type(case.plan(), PutWorld))


def test_a_lost_pod_is_fenced_and_its_successor_avoids_its_node() -> None:
    case = accused()
    waits = case.plan()
    assert not of_type(waits, PutWorld)
    assert waits.requeue_after is not None
    assert waits.requeue_after <= 3
    made = case.after(3.1).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations, world.cause.kind) == (2, {"1": 2}, "PeerLost")
    assert (world.cause.counted, world.cause.total) == (0, 1)
    pod = case.snap.pods[1]
    assert pod.node in [entry.node for entry in made.status.avoid]
    assert pod.name in world.cause.culprit


def test_a_job_that_finishes_steps_loses_nobody() -> None:
    case = accused()
    for step in range(21, 30):
        case = case.after(1.5).report(0, "PeerLost", lost=[1], progress=progress(step))
        assert not acts(case)
        case = case.applied()
    assert acts(case.after(4))


def test_a_failed_rank_or_a_silent_node_ends_the_wait() -> None:
    failed = accused().report(2, "RankFailed", failure=rank_failure(1, root=False))
    assert world_of(failed.plan()).incarnations == {"1": 2}
    case = accused()
    node = case.snap.pods[1].node
    assert node is not None
    silent = case.node(node, ready=False, since=case.snap.now)
    assert world_of(silent.plan()).cause.kind == "NodeLost"


def test_a_master_that_still_reports_is_not_lost() -> None:
    both = accused(by=1, lost=(0,)).report(0, "PeerLost", lost=[1], progress=progress(20))
    assert world_of(both.after(4).plan()).incarnations == {"1": 2}
    alone = accused(by=1, lost=(0,))
    assert world_of(alone.after(4).plan()).incarnations == {"0": 2}


@pytest.mark.parametrize(("lost", "believed"), [((1, 2), True), ((1, 2, 3), False)])
def test_many_at_once_wait_for_the_nodes(lost: tuple[int, ...], believed: bool) -> None:
    assert acts(accused(nodes=6, lost=lost).after(5)) is believed
