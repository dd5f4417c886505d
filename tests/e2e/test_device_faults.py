"""Devices go bad under jobs, with a real kubelet, the real agent and simulated hardware: the work goes on elsewhere,
nothing is counted, and every step is taken exactly once."""

from __future__ import annotations

import pytest
from e2e.device_jobs import NODES, Run, made_new, whole
from harness.devices import RESOURCE, Devices
from harness.installation import Yard
from harness.job import Object

STOPS = {"code": "8C1F8608", "level": "RestartNPU", "text": "simulated"}


@pytest.fixture(autouse=True)
def _sound(devices: Devices) -> None:
    made_new(devices, whole())


def node_condition(yard: Yard, node: str) -> Object:
    """AcceleratorsHealthy of a node."""
    conditions = yard.api.core.read_node(node).status.conditions
    return next(({"status": c.status, "reason": c.reason, "message": c.message} for c in conditions
                 if c.type == "AcceleratorsHealthy"), {})


def test_a_fault_in_use_moves_the_pod_and_an_unused_one_nothing(yard: Yard, devices: Devices, namespace: str) -> None:
    run = Run(yard, devices, namespace, "in-use", steps=90, apart=True)
    run.hold()
    run.wait_steps(5)
    node, ids = run.place(1)
    assert len(ids) == 4
    assert run.place(0)[0] != node, "the template wants it so"
    devices.wait("holders are told", lambda: devices.device(node, ids[0]).get("pod"))
    spare = run.free(node)
    devices.fault(node, spare, **STOPS)
    devices.wait("the fault is told", lambda: devices.device(node, spare).get("code"))
    run.wait_steps(5)
    assert run.starts(1) == 1, "a device that nobody uses stops nobody"
    devices.wait("the node says so", lambda: spare in node_condition(yard, node).get("message", ""))
    assert node_condition(yard, node)["reason"] == "DevicesUnhealthy"
    devices.fault(node, ids[2], **STOPS)
    (recovery,) = run.recoveries(1)
    assert recovery["cause"] == "DeviceFault"
    for word in (ids[2], STOPS["code"], STOPS["level"], node):
        assert word in recovery["culprit"], recovery["culprit"]
    status = run.job.status()
    (avoided,) = [each for each in status["avoid"] if each["device"]]
    assert (avoided["node"], avoided["device"]) == (node, ids[2])
    assert STOPS["code"] in avoided["reason"]
    assert run.place(1)[0] != node
    assert run.pod(0)["metadata"]["name"] == "in-use-0-1", "the other pod stays"
    devices.heal(node, ids[2])
    devices.heal(node, spare)
    run.wait_steps(5)
    devices.wait("it takes new work", lambda: devices.allocatable(node) == 8)
    devices.wait("the node is well", lambda: node_condition(yard, node).get("status") == "True")
    status = run.succeeded()
    assert status["restarts"] == {"total": 1, "counted": 0}, "a device that comes back restarts nothing"
    assert run.starts(0) == run.starts(1) == 2


def test_rank_0_and_then_both_at_once(yard: Yard, devices: Devices, namespace: str) -> None:
    run = Run(yard, devices, namespace, "rank-0", steps=80)
    run.hold()
    run.wait_steps(5)
    node, ids = run.place(0)
    assert run.place(1)[0] == node, "two pods of half a node each are one node's work"
    devices.fault(node, ids[0], **STOPS)
    (recovery,) = run.recoveries(1)
    assert ids[0] in recovery["culprit"]
    assert run.pod(1)["metadata"]["name"] == "rank-0-1-1"
    devices.heal(node, ids[0])
    run.wait_steps(5)
    for index, code in ((0, "8C1F8609"), (1, "8C1F860A")):
        where, held = run.place(index)
        devices.nodes[where].setdefault("faults", {})[held[0]] = [{**STOPS, "code": code}]
    devices.describe(devices.nodes)
    run.wait_steps(5)
    assert len(run.job.status()["recoveries"]) <= 3, "two agents may be seen one after the other"
    for each in NODES:
        devices.nodes[each]["faults"] = {}
    devices.describe(devices.nodes)
    status = run.succeeded()
    assert {each["cause"] for each in status["recoveries"]} == {"DeviceFault"}


def test_a_device_that_flaps_is_one_recovery_and_then_kept_out(yard: Yard, devices: Devices, namespace: str) -> None:
    run = Run(yard, devices, namespace, "flap", steps=80)
    run.hold()
    run.wait_steps(5)
    node, ids = run.place(1)
    for number in range(6):
        devices.fault(node, ids[1], **{**STOPS, "code": f"8C1F87{number:02X}"})
        devices.wait("the fault is told", lambda: devices.device(node, ids[1]).get("health") == "Unhealthy")
        devices.heal(node, ids[1])
        devices.wait("its end is told", lambda: all(
            each.get("ended") for each in devices.device(node, ids[1]).get("history", ())))
        if number == 2:
            run.recoveries(1)
    devices.wait("quarantine", lambda: devices.device(node, ids[1]).get("quarantined"))
    found = devices.get(node)
    assert found is not None
    (order,) = found["spec"]["orders"]
    assert (order["device"], order["action"], order["by"]) == (ids[1], "Quarantine", "Operator")
    status = run.succeeded()
    assert [each["cause"] for each in status["recoveries"]] == ["DeviceFault"]
    assert devices.device(node, ids[1])["quarantined"], "it works, but is kept out for a while"


def test_a_fault_during_start_up(yard: Yard, devices: Devices, namespace: str) -> None:
    run = Run(yard, devices, namespace, "start-up", steps=20, per_node=8)
    run.hold()
    run.job.wait("pods", lambda status: len(run.job.pods()) == 2)
    node = run.pod(1)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
    devices.fault(node, "Ascend910-5", **STOPS)
    run.wait_steps(1)
    assert run.place(1)[0] != node
    status = run.succeeded()
    assert status["restarts"]["counted"] == 0
    assert status["restarts"]["total"] <= 1, "none if no rank had begun"


def test_no_healthy_device_is_left(yard: Yard, devices: Devices, namespace: str) -> None:
    """Two nodes for two pods of eight: the survivor keeps its place, and the job waits for the device itself."""
    made_new(devices, whole(*NODES[:2]))
    run = Run(yard, devices, namespace, "nowhere", steps=40, per_node=8)
    run.hold()
    run.wait_steps(5)
    node, ids = run.place(1)
    devices.fault(node, ids[7], **STOPS)
    status = run.job.wait("waiting", lambda status: run.job.condition("Scheduled", status).get("status") == "False")
    message = run.job.condition("Scheduled", status)["message"]
    assert RESOURCE in message
    assert status["state"] == "Recovering"
    held = run.step()
    devices.heal(node, ids[7])
    run.wait_steps(5)
    assert held >= 5
    status = run.succeeded()
    assert [each["cause"] for each in status["recoveries"]] == ["DeviceFault"]


def test_two_jobs_compete_for_one_ring(yard: Yard, devices: Devices, namespace: str) -> None:
    """One node, one ring of it taken for the time being: never half a job, never four devices of two rings."""
    made_new(devices, whole(NODES[0]))
    long = Run(yard, devices, namespace, "long", nodes=1, steps=100)
    long.hold()
    long.wait_steps(1)
    both = [Run(yard, devices, namespace, f"rival-{number}", nodes=1, steps=8) for number in range(2)]
    seen: dict[str, set[str]] = {}
    while not all(run.job.status().get("state") == "Succeeded" for run in both):
        for run in (long, *both):
            pod = run.job.pod(0)
            if pod is not None and pod["status"].get("phase") == "Running":
                seen.setdefault(run.job.name, set()).update(run.place(0)[1])
        running = [run for run in both if (pod := run.job.pod(0)) and pod["status"].get("phase") == "Running"]
        assert len(running) <= 1
    for run in both:
        run.succeeded()
    long.succeeded()
    for name, ids in seen.items():
        assert len({int(each.rpartition("-")[2]) // 4 for each in ids}) == 1, f"{name}: {ids}"
    events = [event["reason"] for run in both for event in run.job.events()]
    assert "Waiting" in events, "one of them had to, and said so"


def test_restarts_of_agent_kubelet_and_containerd_are_no_business_of_a_job(
        yard: Yard, devices: Devices, namespace: str) -> None:
    yard.needs("kubelet")
    yard.needs("containerd")
    run = Run(yard, devices, namespace, "restarts", steps=150)
    run.hold()  # restarts take their time where the machine is slow
    run.wait_steps(5)
    node, _ = run.place(1)
    for what in ("agent", "kubelet", "containerd"):
        if what == "agent":
            yard.api.core.delete_namespaced_pod(
                devices.agent(node)["metadata"]["name"], "trainyard-system", grace_period_seconds=0)
        else:
            yard.cluster.restart(what, node)
        run.wait_steps(10)
        devices.wait_served(90)
        status = run.job.status()
        assert status["restarts"]["counted"] == 0, f"{what}: {status['recoveries']}"
    run.succeeded()
    assert run.starts(1) == 1, "training did not notice"
