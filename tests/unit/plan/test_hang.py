"""Steps that stop."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard.api.job import Progress
from trainyard.api.protocol import Position
from trainyard.plan.collectives import behind
from trainyard.plan.types import CreatePod, Plan
from unit.plan.builders import Case, condition, of_type, rank_failure, training, world_of


@pytest.mark.parametrize(
    ("setting", "pace", "seconds", "restarts"),
    [
        ("auto", "1.0", 299, False),
        ("auto", "1.0", 301, True),
        ("auto", "60", 500, False),
        ("auto", "60", 601, True),
        (20, "1.0", 19, False),
        (20, "1.0", 21, True),
    ],
)
def test_hang(setting: object, pace: str, seconds: float, restarts: bool) -> None:
    case = training(failurePolicy={"hangSeconds": setting})
    case = case.formed(step=20, steps=100, seconds_per_step=pace).settled().after(seconds)
    made = case.plan()
    if not restarts:
        assert made.actions == ()
        assert made.requeue_after is not None
        return
    world = world_of(made)
    assert (world.cause.kind, world.cause.counted, world.incarnations) == ("Hang", 1, {})
    assert "after step 20" in world.cause.culprit


@pytest.mark.parametrize("setting", ["auto", 20])
@pytest.mark.parametrize(("seconds", "restarts"), [(1700, False), (1900, True)])
def test_an_evaluation_or_export_is_no_hang(setting: object, seconds: float, restarts: bool) -> None:
    case = training(failurePolicy={"hangSeconds": setting})
    case = case.formed(step=20, steps=100, seconds_per_step="1.0", activity="evaluate").settled().after(seconds)
    assert bool(case.plan().actions) == restarts


def test_steps_that_nobody_could_report_are_not_missed() -> None:
    """After an outage of the API server the clock starts when reports can be heard again."""
    case: Case = training().after(900)
    assert world_of(case.plan()).cause.kind == "Hang"
    case = case.but(heard_since=case.snap.now - timedelta(seconds=100))
    made = case.plan()
    assert made.actions == ()
    assert made.requeue_after == pytest.approx(200)
    assert "for 1101 s after step 20" in world_of(case.after(201).plan()).cause.culprit


def test_a_hang_is_seen_although_the_operators_clock_was_set_back() -> None:
    """What the status tells of seems to lie ahead then; it is counted from when that was noticed."""
    case: Case = training().after(-3600)
    case = case.but(heard_since=case.snap.now - timedelta(seconds=100))
    assert case.plan().requeue_after == pytest.approx(200)
    assert world_of(case.after(201).plan()).cause.kind == "Hang"


def test_a_pod_whose_clock_is_behind_is_not_hung_from_the_start() -> None:
    case: Case = training().status_with(progress=Progress(step=3))
    case = case.report(0, "Formed", formed_at=(case.snap.now - timedelta(hours=2)).isoformat())
    assert case.after(60).plan().actions == ()
    assert world_of(case.after(1801).plan()).cause.kind == "Hang"


def test_a_program_that_reports_no_steps_is_left_alone() -> None:
    case: Case = training(failurePolicy={"hangSeconds": 5})
    case = case.status_with(progress=None).formed().after(100)
    assert case.plan().actions == ()


def test_hangs_end_a_job_that_may_not_restart() -> None:
    case = training(failurePolicy={"hangSeconds": 5, "maxRestarts": 0}).after(6)
    assert condition(case.plan().status, "Failed")[1] == "MaxRestartsExceeded"


def at(group: str, *issued: int) -> list[Position]:
    """Ranks 0, 1, ... of a group; -1: not in it."""
    return [Position(group=group, rank=rank, issued=count) for rank, count in enumerate(issued) if count >= 0]


@pytest.mark.parametrize(("positions", "ranks"), [
    ([], []),
    (at("w", 7, 7, 7), []),  # they wait for each other
    (at("w", 7, 6, 7), [1]),
    (at("w", 7, 6, 6), [1, 2]),
    # Ranks 0, 1 and 2, 3 are tensor groups; 3 does nothing, so 2 waits there, and 0 and 1 for both in the gang's group.
    ([*at("w", 9, 9, 8, 8), *at("t0", 40, 40), *at("t1", -1, -1, 40, 39)], [3]),
])
def test_who_is_waited_for(positions: list[Position], ranks: list[int]) -> None:
    assert [one.rank for one in behind(positions)] == ranks


def waits(case: Case, index: int, issued: int) -> Case:
    position = {"group": "0", "rank": index, "issued": issued}
    hang = {"since": (case.snap.now - timedelta(seconds=6)).isoformat(), "phase": "step", "step": 20,
            "text": f"stack of {index}", "positions": [position]}
    told = {"step": 20, "steps": 100, "durable_step": 20, "seconds_per_step": "1.0"}
    return case.report(index, "Formed", formed_at=case.snap.now.isoformat(), hang=hang,
                       progress=told if index == 0 else None)


def test_a_hang_that_all_pods_see_names_who_is_behind() -> None:
    case = training().after(6)
    assert not waits(case, 1, 11).plan().actions, "pod 0 may be busy with something else"
    made = waits(waits(case, 1, 11), 0, 12).plan()
    cause = world_of(made).cause
    assert (cause.kind, cause.counted) == ("Hang", 1)
    assert cause.culprit == "rank 1 has begun 11 collectives in group 0, others 12 (phase step, after step 20)"
    assert made.status.recoveries[-1].text == "stack of 1"
    assert made.status.recoveries[-1].milliseconds.detect == 6000
    assert any("stack of 1" in event.message for event in made.events)
    assert "none is behind" in world_of(waits(waits(case, 1, 12), 0, 12).plan()).cause.culprit


def test_a_stopped_rank_is_infrastructure_the_first_time() -> None:
    failure = rank_failure(-9).model_copy(update={"hang": True, "reason": "rank 1 is stopped", "text": "stack"})
    case = training(failurePolicy={"rules": [{"onExitCodes": [-9], "action": "Fail"}]})
    made = case.report(1, "RankFailed", failure=failure).plan()
    world = world_of(made)
    assert (world.cause.kind, world.cause.total, world.cause.counted, world.incarnations) == ("Hang", 1, 0, {})
    again = case.report(1, "RankFailed", failure=failure).applied().formed()
    again = again.report(1, "RankFailed", failure=failure)
    assert world_of(again.plan()).cause.counted == 1, "without a new step"


@pytest.mark.parametrize(("fields", "known"), [
    ({}, "Steps"),
    ({"command": None, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/d"}]}, "steps": 100}},
     "Ranks"),
])
def test_status_says_who_would_notice(fields: dict[str, Any], known: str) -> None:
    assert training(**fields).plan().status.hang_detection == known


# Nodes in pairs ------------------------------------------------------------------------------------------------------


def hangs(case: Case, issued: tuple[int, int, int] = (12, 12, 12)) -> Case:
    """Every pod of three says that it waits."""
    for index in (2, 1, 0):
        case = waits(case, index, issued[index])
    return case


def hung_once(**more: Any) -> Case:
    """A gang of three that has hung without a culprit, and trains again where it was."""
    case: Case = hangs(training(3, **more).after(6)).applied()
    assert case.world_spec.check == "None"
    return case.formed(step=20, steps=100, durable_step=20, seconds_per_step="1.0").settled()


def emitted(made: Plan) -> list[str]:
    return [event.reason for event in made.events]


def checked(case: Case, kind: str = "Checked", **check: Any) -> Case:
    more = {"formed_at": case.snap.now.isoformat()} if kind == "Formed" else {}
    return case.report(0, kind, check={"pairs": 3} | check, **more)


def test_the_second_hang_without_a_culprit_asks_for_a_check_in_pairs() -> None:
    made = hangs(hung_once().after(6)).plan()
    world = world_of(made)
    assert (world.check, world.cause.kind, world.cause.counted) == ("Pairs", "Hang", 2)
    assert "nodes are checked in pairs first" in made.status.recoveries[-1].culprit
    assert "nodes are checked in pairs before ranks start" in condition(
        hangs(hung_once().after(6)).applied().plan().status, "Running")[2]


@pytest.mark.parametrize("why", ["somebody is behind", "a step was finished in between", "it was the first"])
def test_other_hangs_ask_for_none(why: str) -> None:
    case = training(3) if why == "it was the first" else hung_once()
    if why == "a step was finished in between":
        case = case.formed(step=21, steps=100, seconds_per_step="1.0").settled()
    made = hangs(case.after(6), (12, 11, 12) if why == "somebody is behind" else (12, 12, 12))
    if why == "a step was finished in between":
        made = made.but(reports=tuple(  # it had reported that step when it hung
            replace(one, spec=one.spec.model_copy(update={"progress": case.snap.reports[0].spec.progress}))
            if one.spec.index == 0 else one for one in made.snap.reports))
    assert world_of(made.plan()).check == "None"


def test_the_node_that_failed_with_both_is_avoided_and_its_pod_replaced() -> None:
    case = hangs(hung_once().after(6)).applied().after(4)
    node = next(pod.node for pod in case.snap.pods if pod.index == 2)
    case = checked(case, failed=2, culprits=[2], reason="index 2 failed with index 1 and index 0: wrong sum")
    made = case.plan()
    world = world_of(made)
    assert (world.check, world.incarnations, world.cause.counted, world.cause.total) == ("None", {"2": 2}, 2, 2)
    (avoid,) = made.status.avoid
    assert (avoid.node, "wrong sum" in avoid.reason) == (node, True)
    last = made.status.recoveries[-1]
    assert (last.cause, last.generation) == ("CheckFailed", world.generation)
    assert last.culprit.startswith(f"pod j-2-1 on node {node} failed the check of nodes in pairs: index 2 failed with")
    assert len(made.status.recoveries) == 2, "one recovery a hang"
    assert emitted(made).count("CheckFailed") == 1
    settled = case.applied().settled()
    (pod,) = (pod for pod in settled.snap.pods if pod.index == 2)
    assert (pod.incarnation, pod.pinned != node) == (2, True)
    assert not of_type(settled.plan(), CreatePod)


@pytest.mark.parametrize(("failed", "kind", "reason"), [
    (0, "Normal", "all 3 pairs passed"),
    (3, "Warning", "3 of 3 pairs failed, but that does not show whose fault it is"),
])
def test_a_check_that_blames_nobody_is_told_once(failed: int, kind: str, reason: str) -> None:
    case = hangs(hung_once().after(6)).applied().after(4)
    case = checked(case, "Formed", failed=failed, reason=reason)
    made = case.plan()
    assert not made.actions
    assert [(event.type, event.message) for event in made.events if event.reason == "NodesChecked"] == [
        (kind, f"Nodes were checked in pairs: {reason}.")]
    assert made.status.recoveries[-1].culprit.startswith(f"nodes were checked in pairs: {reason}; all ranks wait")
    assert not made.status.avoid
    assert "NodesChecked" not in emitted(case.applied().plan())


def test_a_pod_lost_during_the_check_does_not_end_it() -> None:
    case = hangs(hung_once().after(6)).applied().after(1).without_pod(0)
    assert world_of(case.plan()).check == "Pairs"


def again(case: Case) -> Case:
    """It trains where it was."""
    return case.formed(step=20, steps=100, durable_step=20, seconds_per_step="1.0").settled()


def test_the_third_hang_without_a_culprit_ends_the_job_with_the_evidence() -> None:
    case = again(hangs(hung_once().after(6)).applied())
    _, reason, message = condition(hangs(case.after(6)).plan().status, "Failed")
    assert reason == "CrashLoop"
    assert "none is behind" in message
    assert "the same 3 times without a newly finished step. Last lines:\nstack of" in message


def test_a_node_that_was_to_blame_twice_in_a_row_is_left_behind() -> None:
    case = again(hangs(training(3).after(6), (12, 11, 12)).applied())
    node = next(pod.node for pod in case.snap.pods if pod.index == 1)
    made = hangs(case.after(6), (12, 11, 12)).plan()
    world = world_of(made)
    assert (world.check, world.incarnations, world.cause.counted) == ("None", {"1": 2}, 2)
    assert [avoid.node for avoid in made.status.avoid] == [node]
    assert f"again pod j-1-1 on node {node}: it is replaced" in world.cause.culprit
    other = hangs(case.after(6), (12, 12, 11)).plan()
    assert (world_of(other).incarnations, other.status.avoid) == ({}, []), "another one this time"
    once = hangs(case.after(6), (12, 11, 12)).applied()
    last = hangs(again(once).after(6), (12, 11, 12)).plan()
    assert condition(last.status, "Failed")[1] == "CrashLoop"


def test_one_pod_alone_is_not_checked() -> None:
    def alone(case: Case) -> Case:
        return waits(case.after(6), 0, 12)

    case = alone(training(1)).applied().formed(step=20, steps=100, durable_step=20, seconds_per_step="1.0").settled()
    assert world_of(alone(case).plan()).check == "None"
