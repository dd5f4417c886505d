"""A device that goes bad under a job: its pod is replaced, one fault makes one recovery, nothing is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from trainyard.api.job import DeviceFault
from trainyard.fleet.blame import BLAME_DEVICES
from trainyard.fleet.devices import Accelerators
from trainyard.placement.books import Books, DevicesView
from trainyard.plan.conditions import find
from trainyard.plan.devices import NO_CODE
from trainyard.plan.times import stamp
from trainyard.plan.types import CreatePod, DeletePod, PodDevice, PutWorld
from unit.fleet.nodes import BAD, RESOURCE, but, node
from unit.plan.builders import NOW, Case, condition, of_type, placed, rank_failure, training, world_of


def held(index: int = 1, number: int = 3, **changes: Any) -> Accelerators:
    """The node of an index, whose device has these changes and is held by that index's pod."""
    return but(node(f"n{index}"), number, **{"pod": f"ns/j-{index}-1"} | changes)


def with_devices(case: Case, *told: Accelerators) -> Case:
    return case.but(devices={each.node: each for each in told})


def given(case: Case, index: int = 1, health: str = "Unhealthy", seconds: float = 0.0) -> Case:
    """kubelet says that the pod has device 3, of this health for so long."""
    since = case.snap.now - timedelta(seconds=seconds)
    return case.pod(index, devices=(PodDevice("Ascend910-3", health, RESOURCE, since),))


@pytest.mark.parametrize("index", [0, 1])
def test_a_fault_in_use_replaces_the_pod_and_counts_nothing(index: int) -> None:
    made = with_devices(training(), held(index, **BAD)).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations) == (2, {str(index): 2})
    assert (world.cause.kind, world.cause.total, world.cause.counted) == ("DeviceFault", 1, 0)
    assert isinstance(made.actions[0], PutWorld), "fenced before it is deleted"
    assert [delete.name for delete in of_type(made, DeletePod)] == [f"j-{index}-1"]
    assert [pod.node != f"n{index}" for pod in of_type(made, CreatePod)] == [True]
    (avoid,) = made.status.avoid
    assert (avoid.node, avoid.device) == (f"n{index}", "Ascend910-3")
    assert avoid.reason == "80E18005, RestartNPU: HBM error"
    (recovery,) = made.status.recoveries
    assert recovery.cause == "DeviceFault"
    for word in ("Ascend910-3", "80E18005", f"n{index}", f"j-{index}-1"):
        assert word in recovery.culprit
    (fault,) = made.status.device_faults
    assert (fault.node, fault.device, fault.code) == (f"n{index}", "Ascend910-3", "80E18005")


@pytest.mark.parametrize(("changes", "stops"), [
    ({}, False),
    ({"health": "Healthy", "level": "SubHealthFault", "code": "1"}, False),
    ({"health": "Healthy", "level": "NotHandleFault", "code": "1"}, False),
    ({"health": "Unhealthy", "level": "PreSeparateNPU", "code": "1"}, False),
    ({"health": "Unhealthy", "level": "SeparateNPU", "code": "1"}, True),
    ({"health": "Unhealthy", "level": "RestartRequest", "code": "1"}, True),
    ({"health": "Unhealthy"}, True),
    ({"health": "Unknown"}, False),
    ({"health": "Unhealthy", "quarantined": True}, False),
    ({"health": "Unhealthy", "quarantined": True, "level": "RestartNPU"}, True),
    ({"health": "Unhealthy", "probation": "2026-11-20T12:05:00Z"}, False),
    ({"health": "Unhealthy", "level": "RestartNPU", "pod": ""}, False),
    ({"health": "Unhealthy", "level": "RestartNPU", "pod": "other/j-1-1"}, False),
], ids=str)
@pytest.mark.parametrize("told_by_kubelet", [False, True])
def test_what_stops_work(changes: dict[str, Any], stops: bool, told_by_kubelet: bool) -> None:
    """kubelet's word alone does not tell a device that may be used to the end from one that may not."""
    case = with_devices(training(), held(**changes))
    if told_by_kubelet:
        if "pod" in changes:
            return  # kubelet's list says whose they are
        case = given(case, health=changes.get("health", "Healthy"), seconds=60)
    assert bool(of_type(case.plan(), PutWorld)) == stops


def test_kubelets_word_is_enough_where_no_agent_tells() -> None:
    made = given(training()).plan()
    assert world_of(made).cause.kind == "DeviceFault"
    assert (made.status.avoid[0].device, made.status.avoid[0].reason) == ("Ascend910-3", NO_CODE)
    assert made.status.device_faults == [], "without a code nobody can be blamed"


def test_all_devices_of_an_observed_node_may_be_ill_at_once() -> None:
    """The observer calls that unknown, since a plugin that is gone looks the same to it; kubelet knows better."""
    case = given(with_devices(training(), replace(held(health="Unknown"), backend="observe")), seconds=60)
    assert world_of(case.plan()).cause.kind == "DeviceFault"
    ours = given(with_devices(training(), held(health="Unknown")), seconds=60)
    assert ours.plan().actions == (), "what our own agent cannot read it does not call ill"


def test_kubelets_word_waits_a_moment_for_how_bad_it_is() -> None:
    case = given(with_devices(training(), held()))
    made = case.plan()
    assert made.actions == ()
    assert made.requeue_after == pytest.approx(1.0)
    assert world_of(case.after(1.0).plan()).cause.kind == "DeviceFault"
    exact = with_devices(case, held(**BAD)).plan()
    assert "80E18005" in exact.status.recoveries[0].culprit
    assert with_devices(case, held(health="Unhealthy", level="PreSeparateNPU")).after(9).plan().actions == ()


def test_another_kind_of_device_with_the_same_id_is_another_device() -> None:
    case = training().pod(1, devices=(PodDevice("Ascend910-3", "Healthy", "nvidia.com/gpu"),))
    assert with_devices(case, held(**BAD)).plan().actions == ()


def test_one_fault_told_twice_is_one_recovery_and_gets_its_code_later() -> None:
    case = given(training()).applied()
    assert case.world_spec.incarnations == {"1": 2}
    vague = case.snap.status.recoveries[0].culprit
    assert "80E18005" not in vague
    later = with_devices(case.after(3), held(**BAD)).applied()
    assert later.world_spec.generation == case.world_spec.generation
    (recovery,) = later.snap.status.recoveries
    assert "Ascend910-3: 80E18005, RestartNPU: HBM error" in recovery.culprit
    assert later.snap.status.avoid[0].reason == "80E18005, RestartNPU: HBM error"
    assert [fault.code for fault in later.snap.status.device_faults] == ["80E18005"]
    assert later.settled().snap.status.restarts.total == 1


def test_several_devices_at_once_are_one_recovery() -> None:
    both = but(held(**BAD), 2, pod="ns/j-1-1", **BAD | {"code": "80C98000"})
    made = with_devices(training(3), both, held(2, **BAD)).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations, world.cause.total) == (2, {"1": 2, "2": 2}, 1)
    assert {(entry.node, entry.device) for entry in made.status.avoid} == {
        ("n1", "Ascend910-2"), ("n1", "Ascend910-3"), ("n2", "Ascend910-3")}
    assert "80C98000" in made.status.recoveries[0].culprit


def test_the_rank_that_failed_of_its_device_is_no_failure_of_the_job() -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(1))
    world = world_of(with_devices(case, held(**BAD)).plan())
    assert (world.cause.kind, world.cause.total, world.cause.counted) == ("DeviceFault", 1, 0)
    assert world.incarnations == {"1": 2}


def test_a_failure_on_another_pod_still_counts() -> None:
    case = training(3).report(2, "RankFailed", failure=rank_failure(1))
    world = world_of(with_devices(case, held(**BAD)).plan())
    assert (world.cause.kind, world.cause.counted) == ("RankFailed", 1)
    assert world.incarnations == {"1": 2}


def test_a_rank_that_failed_before_its_device_was_noticed_is_not_counted_after_all() -> None:
    failed = training().report(1, "RankFailed", failure=rank_failure(1)).applied()
    assert failed.world_spec.cause.counted == 1
    case = with_devices(failed.after(3), held(**BAD)).applied()
    cause = case.world_spec.cause
    assert (cause.kind, cause.total, cause.counted) == ("DeviceFault", 1, 0)
    (recovery,) = case.snap.status.recoveries
    assert recovery.cause == "DeviceFault"
    assert "80E18005" in recovery.culprit
    late = with_devices(failed.after(61), held(**BAD)).applied()
    assert (late.world_spec.cause.total, late.world_spec.cause.counted) == (1, 1), "two things happened"


def test_a_container_that_ended_of_its_device_is_not_counted() -> None:
    case = training().pod(1, incarnation=2, exit_code=None)
    world = case.world_spec.model_copy(update={"incarnations": {"1": 2}})
    assert case.snap.world is not None
    case = case.but(world=replace(case.snap.world, spec=world)).report(1, "Stopping")
    case = with_devices(case, held(**BAD))
    assert world_of(case.plan()).cause.counted == 0


def test_a_fault_during_start_up_is_no_restart() -> None:
    case = with_devices(placed().pod(1, node="n1").pod(0, node="n0"), held(**BAD))
    made = case.plan()
    world = world_of(made)
    assert (world.incarnations, world.cause.kind, world.cause.total) == ({"1": 2}, "Start", 0)
    assert made.status.avoid[0].device == "Ascend910-3"
    assert [event.reason for event in made.events if event.type == "Warning"] == ["DeviceFault"]
    assert case.settled().snap.status.recoveries == []


def test_with_no_other_place_the_survivors_wait_and_the_job_goes_on_when_there_is_one() -> None:
    case = training()
    full = Books({name: case.snap.books.nodes[name] for name in ("n0",)}, {"n0": {"cpu": 1000, "pods": 1}})
    case = with_devices(case, held(**BAD)).but(books=full)
    waiting = case.settled()
    assert [pod.name for pod in waiting.snap.pods] == ["j-0-1"]
    assert condition(waiting.snap.status, "Scheduled")[0] == "False"
    assert waiting.plan().waiting is not None
    healed = with_devices(waiting.after(60), held(pod="")).but(books=training().snap.books)
    made = healed.plan()
    assert [pod.incarnation for pod in of_type(made, CreatePod)] == [2]
    assert made.status.restarts.counted == 0


def test_a_node_that_is_the_only_one_is_taken_again() -> None:
    case = training()
    two = Books({name: case.snap.books.nodes[name] for name in ("n0", "n1")}, {"n0": {"cpu": 1000, "pods": 1}})
    made = with_devices(case, held(**BAD)).but(books=two).plan()
    assert [pod.node for pod in of_type(made, CreatePod)] == ["n1"]


def test_a_device_that_is_back_is_no_longer_avoided() -> None:
    case = with_devices(training(), held(**BAD)).settled()
    assert with_devices(case.after(9), held()).settled().snap.status.avoid
    on_probation = held(probation="2026-11-20T12:05:00Z")
    assert with_devices(case.after(20), on_probation).settled().snap.status.avoid
    back = with_devices(case.after(20), held()).plan()
    assert back.status.avoid == []
    assert back.actions == (), "no restart of anything"


def raised(count: int, code: str = "80E18005", hours: float = 1.0) -> list[DeviceFault]:
    at = stamp(NOW - timedelta(hours=hours))
    return [DeviceFault(node=f"m{i}", device="Ascend910-0", code=code, at=at) for i in range(count)]


@pytest.mark.parametrize(("known", "counted"), [
    (raised(BLAME_DEVICES - 2), 0), (raised(BLAME_DEVICES - 1), 1), (raised(BLAME_DEVICES), 1),
    (raised(5, code="other"), 0), (raised(5, hours=25), 0),
    ([DeviceFault(node="n1", device="Ascend910-3", code="80E18005", at=stamp(NOW))] * 5, 0),
], ids=["second", "third", "fourth", "other code", "long ago", "the same device"])
def test_the_same_code_on_three_devices_counts_against_the_job(known: list[DeviceFault], counted: int) -> None:
    made = with_devices(training().status_with(device_faults=known), held(**BAD)).plan()
    assert world_of(made).cause.counted == counted
    said = [event.reason for event in made.events]
    assert said.count("DeviceFaultsBlamed") == (counted and len(known) == BLAME_DEVICES - 1)
    assert ("counts against the job" in made.status.recoveries[0].culprit) == bool(counted)


def test_a_job_that_breaks_devices_ends_at_its_limit() -> None:
    case = training(failurePolicy={"maxRestarts": 0}).status_with(device_faults=raised(3))
    made = with_devices(case, held(**BAD)).plan()
    assert condition(made.status, "Failed")[:2] == ("True", "MaxRestartsExceeded")
    assert "80E18005" in condition(made.status, "Failed")[2]


REFUSED = {"reason": "CreateContainerConfigError", "started": False, "ready": False, "phase": "Pending",
           "message": "device plugin PreStartContainer rpc failed with err: rpc error: code = Unavailable"}
FORGOTTEN = REFUSED | {"message": f"endpoint not found in cache for a registered resource: {RESOURCE}"}
NOT_GIVEN = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed", "started": False, "phase": "Failed"}


def told_of(case: Case, known: bool = True) -> Case:
    """Every node has an agent that tells of its devices, or is away."""
    view = DevicesView(RESOURCE, known=known, trouble="" if known else "the agent's pod is not ready")
    nodes = {name: replace(each, devices=view) for name, each in case.snap.books.nodes.items()}
    return case.but(books=replace(case.snap.books, nodes=nodes))


@pytest.mark.parametrize(("refused", "patience"), [(REFUSED, 2.0), (FORGOTTEN, 2.0), (NOT_GIVEN, 0.0)])
@pytest.mark.parametrize("known", [True, False])
def test_a_refused_start_is_tried_again_as_a_new_pod(refused: dict[str, Any], patience: float, known: bool) -> None:
    case = told_of(placed().started().pod(1, node="n1", **refused), known)
    if patience:
        assert case.after(patience - 0.5).plan().actions == ()
    made = case.after(patience).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations, world.cause.total) == (1, {"1": 2}, 0)
    assert made.status.avoid == [], "the node is not to blame"


def test_refusals_come_ever_further_apart() -> None:
    case, made = told_of(placed().started()).settled(), []
    for _ in range(600):
        case = case.pod(1, node="n1", **NOT_GIVEN)
        before = len(case.snap.pods)
        if of_type(case.plan(), CreatePod):
            made.append(case.snap.now)
        case = case.applied().after(1)
        assert len(case.snap.pods) <= before
    gaps = [(after - before).total_seconds() for before, after in pairwise(made)]
    assert 12 <= len(made) <= 40
    assert max(gaps[:3]) < 3
    assert min(gaps[-5:]) >= 29
    assert find(case.snap.status, "Failed") is None
    assert case.world_spec.cause.counted == 0


# A device that its pod finds in use before any rank starts ------------------------------------------------------------


def not_free(case: Case, index: int = 1, **changes: Any) -> Case:
    """The supervisor of an index says that device 3 still has a process on it."""
    failure = {"devices": ["Ascend910-3"], "reason": "Ascend910-3 (process 77) still in use"} | changes
    return case.report(index, "RankFailed", failure=rank_failure(76).model_copy(update=failure))


def recovering(failed: int = 0) -> Case:
    """A rank of an index has failed; the next generation has not formed."""
    case = training().report(failed, "RankFailed", failure=rank_failure(-9, reason="SIGKILL"))
    return case.applied().settled().after(25)


def test_a_device_that_is_not_free_is_a_device_fault_of_the_recovery_under_way() -> None:
    case = not_free(recovering())
    made = case.plan()
    world = world_of(made)
    assert (world.generation, world.incarnations) == (3, {"1": 2})
    assert (world.cause.kind, world.cause.total, world.cause.counted) == ("DeviceFault", 1, 1)
    assert [delete.name for delete in of_type(made, DeletePod)] == ["j-1-1"]
    assert [pod.node != "n1" for pod in of_type(made, CreatePod)] == [True]
    (recovery,) = made.status.recoveries
    assert (recovery.cause, recovery.generation) == ("DeviceFault", 3)
    assert recovery.culprit.startswith("device Ascend910-3: not free: Ascend910-3 (process 77) still in use; node n1, "
                                       "pod j-1-1; rank 3 of pod j-0-1 ended with SIGKILL")
    (avoid,) = made.status.avoid
    assert (avoid.node, avoid.device) == ("n1", "Ascend910-3")
    assert [event.message for event in made.events if event.reason == "DeviceFault"] == [
        "device Ascend910-3: not free: Ascend910-3 (process 77) still in use; node n1, pod j-1-1"]


def test_the_agent_sees_nothing_wrong_with_it_and_it_is_avoided_all_the_same() -> None:
    case = with_devices(not_free(recovering()), held(1)).applied()

    def devices_after(seconds: float) -> list[str]:
        return [entry.device for entry in case.after(seconds).plan().status.avoid if entry.device]

    assert devices_after(300) == ["Ascend910-3"]
    assert not devices_after(601)


def test_the_rank_whose_own_device_is_not_free_afterwards_is_not_counted() -> None:
    world = world_of(not_free(recovering(failed=1)).plan())
    assert (world.cause.kind, world.cause.counted, world.incarnations) == ("DeviceFault", 0, {"1": 2})


def test_a_device_that_was_not_free_at_the_first_start_is_no_recovery() -> None:
    made = not_free(placed().started().settled()).plan()
    world = world_of(made)
    assert (world.cause.kind, world.cause.total, world.incarnations) == ("Start", 0, {"1": 2})
    assert not made.status.recoveries
    assert [event.reason for event in made.events].count("DeviceFault") == 1


def test_a_spare_takes_the_place_of_a_pod_whose_device_is_not_free() -> None:
    case = training(2, spareNodes=1).settled().started().settled()
    case = case.report(0, "RankFailed", failure=rank_failure(-9)).applied().settled().after(25)
    assert world_of(not_free(case).plan()).places == {"1": 2}
