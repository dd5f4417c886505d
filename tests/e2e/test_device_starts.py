"""Between a pod's place and its first step: a device goes bad, the agent goes away, kubelet turns the pod away. The pod
is made again, and nothing is counted."""

from __future__ import annotations

import time

from e2e.device_jobs import NODES, Run, made_new, whole
from harness.devices import Devices
from harness.installation import Yard
from harness.job import Job, Object

STOPS = {"code": "8C1F8608", "level": "RestartNPU", "text": "simulated"}
ONE, TWO = NODES[:2]


def uncounted(run: Run) -> Object:
    """The job ends well, was started once, and no restart was counted."""
    status = run.succeeded()
    assert run.starts() == 1
    return status


def test_a_container_is_kept_off_a_device_that_went_bad_after_it_was_given(
        yard: Yard, devices: Devices, namespace: str) -> None:
    made_new(devices, whole(ONE, TWO))
    run = Run(yard, devices, namespace, "late", nodes=1, steps=20, gate=True)
    run.hold()
    node = run.wait_gate()
    ids = devices.held(node)[f"{namespace}/{run.pod(0)['metadata']['name']}"]
    first = run.pod(0)["metadata"]["uid"]
    with yard.operator_down():  # which would act on the fault before the container is started
        devices.fault(node, ids[1], **STOPS)
        devices.wait("the fault is told", lambda: devices.device(node, ids[1]).get("code"))
        run.go()
        devices.wait("its container is refused", lambda: STOPS["code"] in run.waiting())
        assert ids[1] in run.waiting()
        assert run.starts() == 0
    run.wait_steps(1)
    assert run.pod(0)["metadata"]["uid"] != first
    now, held = run.place(0)
    assert now != node or ids[1] not in held
    uncounted(run)


def test_the_agent_is_away(yard: Yard, devices: Devices, namespace: str) -> None:
    """Running work stays; no new work comes; a start that the agent cannot answer is tried again as a new pod, on the
    same node when the agent is back."""
    made_new(devices, whole(ONE))
    runs = Run(yard, devices, namespace, "runs", nodes=1, per_node=2, steps=200, step_seconds=0.1)
    runs.hold()
    starts = Run(yard, devices, namespace, "starts", nodes=1, per_node=2, steps=5, gate=True)
    starts.wait_gate()
    runs.wait_steps(1)
    first = starts.pod(0)["metadata"]["uid"]
    began = time.monotonic()
    with devices.agent_away(ONE):
        devices.wait("the node says so", lambda: _condition(yard, ONE)[0] == "Unknown")
        noticed = time.monotonic() - began
        devices.wait("kubelet offers none", lambda: devices.allocatable(ONE) == 0)
        print(f"agent deleted: the node's condition is Unknown after {noticed:.1f} s, allocatable 0 after "
              f"{time.monotonic() - began:.1f} s")
        new = Run(yard, devices, namespace, "new", nodes=1, per_node=2, steps=5)
        starts.go()
        for run in (new, starts):
            message = run.job.condition("Scheduled", run.job.wait("waiting", _is_waiting(run.job)))["message"]
            assert "without word on the health" in message or "its device plugin is not running" in message, message
        runs.wait_steps(5)
    for run in (new, starts):
        assert run.job.status()["avoid"] == [], "it is not the node"
        uncounted(run)
    assert starts.pod(0)["metadata"]["uid"] != first
    uncounted(runs)


def _condition(yard: Yard, node: str) -> tuple[str, str]:
    conditions = yard.api.core.read_node(node).status.conditions
    return next(((c.status, c.reason) for c in conditions if c.type == "AcceleratorsHealthy"), ("", ""))


def _is_waiting(job: Job):  # type: ignore[no-untyped-def]
    return lambda status: job.condition("Scheduled", status).get("status") == "False"


def test_kubelet_turns_a_pod_away_when_it_starts_again(yard: Yard, devices: Devices, namespace: str) -> None:
    """The pod was bound while kubelet was down, and when it is back it has no devices to give."""
    yard.needs("kubelet")
    made_new(devices, whole(ONE))
    yard.cluster.kubectl("cordon", ONE)
    try:  # all that comes before placement is over when kubelet ends: soon after it the node is not used
        run = Run(yard, devices, namespace, "turned-away", nodes=1, per_node=2, steps=5)
        run.job.wait("waiting", _is_waiting(run.job))
        yard.cluster.stop("kubelet", ONE)
    finally:
        yard.cluster.kubectl("uncordon", ONE)
    try:
        devices.wait("the pod is bound", lambda: (run.job.pod(0) or {}).get("spec", {}).get("nodeName"), 6)
        devices.unreadable(ONE, "a test")
        devices.wait("nothing can be given", lambda: devices.ready(ONE)["status"] == "False")
    finally:
        yard.cluster.start("kubelet", ONE)
    devices.wait("it is turned away", lambda: _turned_away(yard, namespace))
    devices.unreadable(ONE, "")
    status = uncounted(run)
    assert status["restarts"] == {"total": 0, "counted": 0}
    assert run.pod(0)["metadata"]["name"] != "turned-away-0-1"


def _turned_away(yard: Yard, namespace: str) -> bool:
    events = yard.api.core.list_namespaced_event(namespace, field_selector="reason=UnexpectedAdmissionError").items
    return bool(events)
