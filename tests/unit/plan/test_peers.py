"""Pods that their peers have lost."""

from __future__ import annotations

import pytest
from trainyard.api.protocol import RankProgress
from trainyard.plan.times import fine_stamp
from trainyard.plan.types import PutWorld
from unit.plan.builders import Case, of_type, rank_failure, training, world_of


def progress(step: int, pace: str = "1.0") -> RankProgress:
    """Rank 0 at this step, a second a step."""
    return RankProgress.model_validate({"step": step, "steps": 100, "seconds_per_step": pace})


def accused(nodes: int = 3, by: int = 0, lost: tuple[int, ...] = (1,), step: int = 20, stalled: bool = False) -> Case:
    """A job that trains, 10 s after its last step; a pod has just lost others."""
    return loses(training(nodes).after(10), by, lost, step, stalled)


def loses(case: Case, by: int, lost: tuple[int, ...], step: int = 20, stalled: bool = False) -> Case:
    """A pod has just lost others, and maybe its own ranks wait."""
    told = {"lost": list(lost), "lost_at": fine_stamp(case.snap.now), "progress": progress(step) if by == 0 else None}
    return case.report(by, "PeerLost", stalled=stalled, **told)


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


@pytest.mark.parametrize(("pace", "every"), [("1.0", 1.5), ("0.2", 2.3)])
def test_a_job_that_finishes_steps_loses_nobody(pace: str, every: float) -> None:
    """However short its steps are, they are told of every 2 s only."""
    case = accused()
    for step in range(21, 30):
        case = case.after(every)
        assert not acts(case)
        case = case.report(0, "PeerLost", lost=[1], progress=progress(step, pace))
        assert not acts(case)
        case = case.applied()
    assert acts(case.after(4))


def test_a_lost_pod_for_which_ranks_wait_is_believed_at_once() -> None:
    assert world_of(accused(stalled=True).plan()).incarnations == {"1": 2}
    assert world_of(accused(by=1, lost=(0,), stalled=True).plan()).incarnations == {"0": 2}
    later = loses(accused(nodes=4, by=1, lost=(0,)), 3, (0,), stalled=True)
    assert acts(later), "either neighbour of the master is enough"


def test_ranks_that_waited_and_go_on_are_believed() -> None:
    case = accused(by=1, lost=(0,), stalled=True)
    goes_on = case.after(0.5).report(0, "Formed", progress=progress(21), formed_at=fine_stamp(case.snap.now))
    assert not acts(goes_on.after(2))
    known = accused(stalled=True).after(0.5)
    assert known.snap.status.progress is not None
    moves = known.snap.status.progress.model_copy(update={"updated": fine_stamp(known.snap.now)})
    assert not acts(known.status_with(progress=moves).after(2))
    taken_back = loses(accused(stalled=True).after(1), 0, (1,))
    assert not acts(taken_back)


def test_two_at_once_wait_for_what_others_tell() -> None:
    case = accused(nodes=6, lost=(1, 2), stalled=True)
    assert not acts(case)
    assert world_of(case.after(1).plan()).incarnations == {"1": 2, "2": 2}


@pytest.mark.parametrize("master_first", [True, False])
@pytest.mark.parametrize("stalled", [True, False])
def test_who_accuse_each_other_live_and_as_few_as_possible_are_replaced(master_first: bool, stalled: bool) -> None:
    for nodes, members, wanted in ((2, (1,), {"1": 2}), (3, (1, 2), {"0": 2}), (6, (1, 5), {"0": 2})):
        case = training(nodes).after(10)
        order = [(0, members), *((index, (0,)) for index in members)]
        for by, lost in order if master_first else reversed(order):
            case = loses(case, by, lost, stalled=stalled).after(0.1)
        assert world_of(case.after(5).plan()).incarnations == wanted


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
