"""failurePolicy: which failures end the job, which are answered and how, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.plan.types import CreatePod, DeletePod, PutWorld
from unit.plan.builders import Case, condition, of_type, placed, rank_failure, training, world_of

RULES = {
    "rules": [
        {"onExitCodes": [3], "action": "Fail"},
        {"onExitCodes": [4], "action": "Ignore"},
        {"onExitCodes": [5], "action": "RestartNode"},
        {"onExitCodes": [-9], "action": "Restart"},
    ]
}


@pytest.mark.parametrize(
    ("code", "counters", "incarnations"),
    [(1, (1, 1), {}), (4, (1, 0), {}), (5, (1, 1), {"1": 2}), (-9, (1, 1), {}), (137, (1, 1), {}),
     (76, (1, 0), {"1": 2})],
)
def test_restarts(code: int, counters: tuple[int, int], incarnations: dict[str, int]) -> None:
    made = training(failurePolicy=RULES).report(1, "RankFailed", failure=rank_failure(code)).plan()
    world = world_of(made)
    assert (world.generation, world.phase, world.cause.kind) == (2, "Run", "RankFailed")
    assert (world.cause.total, world.cause.counted) == counters
    assert world.incarnations == incarnations
    assert (made.status.restarts.total, made.status.restarts.counted) == counters
    assert world.master.address == "10.0.0.1:7000", "a store that is open keeps its address"


@pytest.mark.parametrize(
    ("code", "policy", "reason", "words"),
    [
        (3, RULES, "RankFailed", "rank 3 of pod j-1-1 ended with exit code 3: ValueError: no"),
        (78, {}, "BadConfiguration", "exit code 78: ValueError: no"),
        (78, RULES, "BadConfiguration", "exit code 78"),
        (79, {}, "Diverged", "exit code 79: ValueError: no"),
        (1, {"maxRestarts": 0}, "MaxRestartsExceeded", "ValueError: no (after 0 of 0 restarts"),
        (-11, {"maxRestarts": 0}, "MaxRestartsExceeded", "SIGSEGV"),
    ],
)
def test_failed(code: int, policy: dict[str, Any], reason: str, words: str) -> None:
    made = training(failurePolicy=policy).report(1, "RankFailed", failure=rank_failure(code)).plan()
    assert condition(made.status, "Failed")[:2] == ("True", reason)
    assert words in condition(made.status, "Failed")[2]
    assert made.status.state == "Failed"
    assert world_of(made).phase == "Done", "supervisors leave"
    assert made.status.completion_time is not None


def test_78_is_restarted_if_a_rule_says_so() -> None:
    policy = {"rules": [{"onExitCodes": [78], "action": "Restart"}]}
    made = training(failurePolicy=policy).report(0, "RankFailed", failure=rank_failure(78)).plan()
    assert world_of(made).cause.counted == 1


def test_restart_node_replaces_the_pod_elsewhere_and_remembers() -> None:
    made = training(failurePolicy=RULES).report(1, "RankFailed", failure=rank_failure(5)).plan()
    (created,) = of_type(made, CreatePod)
    assert (created.index, created.incarnation) == (1, 2)
    assert created.node not in ("n0", "n1")
    assert [entry.node for entry in made.status.avoid] == ["n1"]
    assert [delete.name for delete in of_type(made, DeletePod)] == ["j-1-1"]
    kinds = [type(action) for action in made.actions]
    assert kinds == [PutWorld, DeletePod, CreatePod], "the fence comes first"


def test_many_reports_of_one_fault_make_one_recovery() -> None:
    case = training(3).report(2, "RankFailed", failure=rank_failure(1))
    case = case.report(1, "RankFailed", failure=rank_failure(1)).report(0, "RankFailed", failure=rank_failure(1, False))
    case = case.applied()
    assert case.world_spec.generation == 2
    assert (case.world_spec.cause.total, case.world_spec.cause.counted) == (1, 1)
    assert case.plan().actions == (), "reports of an older generation say nothing"


def test_consequences_wait_for_their_root() -> None:
    case = training().report(0, "RankFailed", failure=rank_failure(1, False))
    case = case.report(1, "RankFailed", failure=rank_failure(6, False))
    waiting = case.after(0.5).plan()
    assert waiting.actions == ()
    assert waiting.requeue_after is not None
    assert waiting.requeue_after <= 1.0
    late = case.after(1.5).plan()
    assert world_of(late).cause.counted == 1, (
        "everybody lost a connection and nobody knows why: the earliest is the root"
    )
    assert "pod j-0-1" in world_of(late).cause.culprit


def test_a_silent_peer_is_not_held_against_the_program_but_only_once() -> None:
    case = training().report(0, "RankFailed", failure=rank_failure(1, False)).after(1.6).applied()
    assert (case.world_spec.cause.kind, case.world_spec.cause.total, case.world_spec.cause.counted) == (
        "PeerLost",
        1,
        0,
    )
    again = case.report(0, "RankFailed", failure=rank_failure(1, False)).after(1.6).plan()
    assert world_of(again).cause.counted == 1


def test_ranks_that_saved_because_a_pod_had_no_answer_have_not_failed() -> None:
    """The operator was away when a pod was told to end: its ranks saved by themselves, and the others with them."""
    saved = training().report(0, "RankFailed", failure=rank_failure(75))
    assert world_of(saved.plan()).cause.counted == 1
    for case in (saved.report(1, "Stopping"), saved.without_pod(1)):
        cause = world_of(case.plan()).cause
        assert (cause.kind in ("Moved", "PodLost"), cause.counted) == (True, 0)


def test_a_lost_pod_is_the_root_of_its_peers_complaints() -> None:
    made = training().report(0, "RankFailed", failure=rank_failure(1, False)).without_pod(1).plan()
    cause = world_of(made).cause
    assert (cause.kind, cause.total, cause.counted) == ("PodLost", 1, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"generation": 7}, {"incarnation": 2}, {"pod_uid": "another"}, {"job": "another"}],
    ids=lambda w: next(iter(w)),
)
def test_reports_of_others_are_ignored(wrong: dict[str, Any]) -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(78), **wrong)
    assert case.plan().actions == ()


def test_an_attempt_that_the_master_answered_itself_is_over() -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(1))
    assert case.report(0, "Formed", attempt=1, formed_at="2026-11-20T12:00:01Z").plan().actions == ()


def test_oom_is_named() -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(-9, reason="", oom=True))
    assert "OOM" in world_of(case.plan()).cause.culprit
    case = training().pod(1, phase="Failed", started=False, exit_code=137, oom=True)
    cause = world_of(case.plan()).cause
    assert "OOM" in cause.culprit
    assert cause.counted == 1


@pytest.mark.parametrize(("code", "counted"), [(1, 1), (127, 1), (137, 0), (143, 0), (0, 0)])
def test_containers_that_end_without_a_report(code: int, counted: int) -> None:
    made = training().pod(1, phase="Failed", started=False, exit_code=code).plan()
    world = world_of(made)
    assert (world.incarnations, world.cause.counted) == ({"1": 2}, counted)


def test_an_init_container_that_fails_counts_and_ends_the_job_at_last() -> None:
    """Else a gang whose preparation fails would be made again for ever, pod by pod."""
    case = placed(failurePolicy={"maxRestarts": 1})
    broken = {"phase": "Failed", "failed_init": "fetch", "reason": "Error", "message": "no route to host"}
    case = case.pod(1, init_exit_code=6, **broken)
    world = world_of(case.plan())
    assert (world.cause.kind, world.cause.counted, world.incarnations) == ("RankFailed", 1, {"1": 2})
    assert world.cause.culprit == "init container fetch of pod j-1-1 ended with exit code 6: no route to host"
    case = case.applied().pod(1, init_exit_code=6, **broken)
    assert condition(case.plan().status, "Failed")[1] == "MaxRestartsExceeded"
    refused = placed().pod(1, init_exit_code=143, **broken).plan()
    assert world_of(refused).cause.kind == "Start", "it was ended from outside"


def fails(case: Case, reason: str, code: int = 1) -> Case:
    failure = rank_failure(code).model_copy(update={"reason": reason, "text": "Traceback\nlast words"})
    return case.report(1, "RankFailed", failure=failure)


def test_the_same_failure_three_times_without_a_step_ends_the_job_with_the_evidence() -> None:
    case = fails(training(), "KeyError: 17")
    assert (world_of(case.plan()).cause.repeats, world_of(case.plan()).incarnations) == (1, {})
    case = fails(case.applied().formed(), "KeyError: 18")
    made = case.plan()
    assert (world_of(made).cause.repeats, world_of(made).incarnations) == (2, {"1": 2})
    assert [entry.node for entry in made.status.avoid] == ["n1"], "the last try is made elsewhere"
    case = fails(case.applied().started().settled().formed(), "KeyError: 19")
    status, reason, message = condition(case.plan().status, "Failed")
    assert (status, reason) == ("True", "CrashLoop")
    for words in ("KeyError: 19", "3 times without a newly finished step", "on several nodes, last on n", "last words"):
        assert words in message


@pytest.mark.parametrize("second", ["another", "step", "killed"])
def test_no_crash_loop(second: str) -> None:
    code = -9 if second == "killed" else 1
    case = fails(training(), "KeyError: 17", code).applied()
    if second == "step":
        told = {"step": 21, "steps": 100, "seconds_per_step": "1.0"}
        case = case.formed(**told).settled()
    else:
        case = case.formed()
    case = fails(case, "OSError" if second == "another" else "KeyError: 17", code)
    assert world_of(case.plan()).cause.repeats == 1
