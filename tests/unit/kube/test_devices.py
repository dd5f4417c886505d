"""NodeDevices, kubelet's word and the agent's pod, put together for placement."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.api.devices import Device, DeviceStatus, FaultRecord, NodeDevicesSpec, NodeDevicesStatus, Order
from trainyard.api.devices import NodeCondition as Condition
from trainyard.controller.cluster import Cluster
from trainyard.fleet.devices import Failure
from trainyard.kube import views
from trainyard.kube.client import Client, Object
from trainyard.kube.devices import accelerators
from trainyard.plan.times import stamp
from unit.kube.test_views import pod, trainer

RESOURCE = "huawei.com/Ascend910"
NOW = datetime.now(UTC)


def ready(status: Any = "True", reason: str = "Serving") -> Condition:
    return Condition(type="Ready", status=status, reason=reason, last_transition_time=stamp(NOW))


def told(*devices: DeviceStatus, orders: tuple[Order, ...] = (), version: int = 7, on: Condition | None = None,
         name: str = "n1") -> Object:
    """NodeDevices as the API server has it: four devices, of which the status tells of these."""
    said = {device.id: device for device in devices}
    spec = NodeDevicesSpec(node=name, resource=RESOURCE, model="910A", backend="simulated", super_pod="s1", rack="r1",
                           devices=[Device(id=f"d{i}", physical=i, ring=i // 2, module=i) for i in range(4)],
                           orders=list(orders))
    status = NodeDevicesStatus(devices=[said.get(f"d{i}", DeviceStatus(id=f"d{i}", health="Healthy"))
                                        for i in range(4)], conditions=[on or ready()])
    return {"metadata": {"name": name, "uid": f"u-{name}", "resourceVersion": str(version)},
            "spec": spec.dump(), "status": status.dump()}


def test_what_is_kept_of_it() -> None:
    bad = DeviceStatus(id="d1", health="Unhealthy", code="80E18005", level="RestartNPU", text="HBM", network=False,
                       since=stamp(NOW), faults=2, pod="a/j-3-2", history=[
                           FaultRecord(code="80E18005", level="RestartNPU", began="2026-01-01T00:00:00Z"),
                           FaultRecord(code="1", level="SubHealthFault", began="2026-01-01T00:00:00Z"),
                           FaultRecord(code="2", level="SubHealthFault", began="2026-01-01T00:00:00Z",
                                       ended="2026-01-01T00:01:00Z", hold="2026-01-02T00:01:00Z")])
    kept = accelerators(told(bad))
    assert (kept.node, kept.resource, kept.model, kept.pool) == ("n1", RESOURCE, "910A", (RESOURCE, "910A"))
    assert (kept.super_pod, kept.rack, kept.ready) == ("s1", "r1", True)
    device = kept.device("d1")
    assert device is not None
    assert (device.code, device.level, device.pod, device.network) == ("80E18005", "RestartNPU", "a/j-3-2", False)
    assert device.failures == (
        Failure("80E18005", "2026-01-01T00:00:00Z"),
        Failure("2", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-02T00:01:00Z"))
    assert (device.stops, device.usable, device.words) == (True, False, "80E18005, RestartNPU: HBM")
    assert [each.ring for each in kept.devices] == [0, 0, 1, 1]


def test_devices_that_did_not_change_are_the_same_values() -> None:
    one = accelerators(told())
    two = accelerators(told(DeviceStatus(id="d1", health="Unknown"), version=8), one)
    assert [new is old for new, old in zip(two.devices, one.devices)] == [True, False, True, True]


def test_what_the_status_does_not_tell_of_is_unknown() -> None:
    raw = told()
    del raw["status"]
    kept = accelerators(raw)
    assert {device.health for device in kept.devices} == {"Unknown"}
    assert not kept.ready
    assert not any(device.usable or device.stops for device in kept.devices)


def test_a_level_of_a_newer_agent_is_no_reason_to_go_on() -> None:
    raw = told(DeviceStatus(id="d1", health="Unhealthy", code="1"))
    raw["status"]["devices"][1]["level"] = "MeltDown"
    device = accelerators(raw).device("d1")
    assert device is not None
    assert device.stops


@pytest.mark.parametrize(("action", "minutes", "usable"), [
    ("Quarantine", None, False), ("Quarantine", 10, False), ("Quarantine", 0.5, True), ("Quarantine", -5, True),
    ("Release", None, True)])
def test_an_order_counts_before_the_agent_follows_it(action: Any, minutes: float | None, usable: bool) -> None:
    until = None if minutes is None else stamp(NOW + timedelta(minutes=minutes))
    order = Order(device="d1", action=action, by="Administrator", at=stamp(NOW), until=until)
    device = accelerators(told(orders=(order,))).device("d1")
    assert device is not None
    assert device.usable == usable


def test_kubelets_word_about_a_pods_devices() -> None:
    def of(health: str) -> dict[str, Any]:
        given = [{"name": RESOURCE, "resources": [{"resourceID": "d3", "health": health}, {"resourceID": "d2"}]}]
        return trainer(allocatedResourcesStatus=given)

    first = views.own_pod(pod(of("Healthy")))
    assert first is not None
    assert [(device.id, device.health, device.resource) for device in first.view.devices] == [
        ("d2", "Unknown", RESOURCE), ("d3", "Healthy", RESOURCE)]
    second = views.own_pod(pod(of("Unhealthy")), first)
    third = views.own_pod(pod(of("Unhealthy")), second)
    assert second is not None
    assert third is not None
    assert third == second, "since when is kept, or every event of the pod would be news"
    assert second.view.devices[1].since != first.view.devices[1].since
    assert second.view.devices[0].since == first.view.devices[0].since


def raw_node(name: str = "n1", allocatable: str = "4", version: int = 3) -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)},
            "status": {"allocatable": {RESOURCE: allocatable, "cpu": "8"},
                       "conditions": [{"type": "Ready", "status": "True"}]}}


def agent(is_ready: bool, version: int = 5, name: str = "agent-x") -> Object:
    return {"metadata": {"name": name, "namespace": "trainyard-system", "resourceVersion": str(version)},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True" if is_ready else "False"}]}}


class Seen:
    """A cluster's caches without an API server, and whom they woke."""

    def __init__(self) -> None:
        self.cluster = Cluster(Client.__new__(Client))
        self.woken: list[str] = []
        self.gains = self.looks = 0
        self.cluster.wake = self.woken.append
        self.cluster.capacity = self._gain
        self.cluster.fleet = self._look

    def _gain(self) -> None:
        self.gains += 1

    def _look(self) -> None:
        self.looks += 1

    def after(self) -> tuple[list[str], bool, bool]:
        """Who was woken, whether places came free, whether the fleet is to be looked at; since the last time."""
        answer = (list(self.woken), bool(self.gains), bool(self.looks))
        self.woken.clear()
        self.gains = self.looks = 0
        return answer


@pytest.fixture
def seen() -> Seen:
    made = Seen()
    made.cluster.nodes.put(raw_node())
    made.cluster.devices.put(told())
    made.cluster.pods.put(pod(nodeName="n1"))
    made.after()
    return made


def test_placement_reads_it_with_the_node(seen: Seen) -> None:
    view = seen.cluster.node_views["n1"].devices
    assert view is not None
    assert (view.resource, view.model, view.super_pod, view.rack, view.known) == (RESOURCE, "910A", "s1", "r1", True)
    seen.cluster.devices.put(told(DeviceStatus(
        id="d1", health="Unhealthy", code="80E18005", level="RestartNPU", pod="a/x"), version=8))
    taken = seen.cluster.node_views["n1"].devices
    assert taken is not None
    assert (taken.devices[1].holder, taken.devices[1].fault) == ("a/x", "80E18005 RestartNPU")
    assert [(device.id, device.ring, device.free, device.usable) for device in view.devices] == [
        ("d0", 0, True, True), ("d1", 0, True, True), ("d2", 1, True, True), ("d3", 1, True, True)]


def test_a_fault_wakes_the_jobs_of_the_node(seen: Seen) -> None:
    seen.cluster.devices.put(told(DeviceStatus(id="d1", health="Unhealthy", level="RestartNPU"), version=8))
    assert seen.after()[0::2] == (["a/j"], True)
    seen.cluster.devices.put(told(version=9))
    assert seen.after() == (["a/j"], True, True)


def test_who_holds_a_device_wakes_nobody_but_those_who_wait(seen: Seen) -> None:
    taken = DeviceStatus(id="d1", health="Healthy", pod="a/x")
    seen.cluster.devices.put(told(taken, version=8))
    assert seen.after() == ([], False, False)
    seen.cluster.devices.put(told(version=9))
    assert seen.after() == ([], True, False)


@pytest.mark.parametrize("gone", ["condition", "pod", "allocatable"])
def test_an_agent_that_is_away(seen: Seen, gone: str) -> None:
    """No new placements; the jobs that are there are not told to leave."""
    seen.cluster.agents.put(agent(True))
    if gone == "condition":
        seen.cluster.devices.put(told(version=8, on=ready("False", "HealthUnreadable")))
    elif gone == "pod":
        seen.cluster.agents.put(agent(False, version=6))
    else:
        seen.cluster.nodes.put(raw_node(allocatable="0", version=4))
    view = seen.cluster.node_views["n1"].devices
    assert view is not None
    assert not view.known
    assert view.trouble
    assert all(device.usable for device in view.devices)
    seen.after()
    if gone == "condition":
        seen.cluster.devices.put(told(version=9))
    elif gone == "pod":
        seen.cluster.agents.put(agent(True, version=7))
    else:
        seen.cluster.nodes.put(raw_node(version=5))
    view = seen.cluster.node_views["n1"].devices
    assert view is not None
    assert view.known
    assert seen.after()[1], "jobs that wait look again"


def test_where_mindcluster_gives_out_the_devices_nothing_is_placed_until_it_does_not(seen: Seen) -> None:
    """Their health is known all the same."""
    remapped = told(version=8)
    remapped["spec"]["remapped"] = True
    seen.cluster.devices.put(remapped)
    view = seen.cluster.node_views["n1"].devices
    assert view is not None
    assert (view.known, "placement: Scheduler" in view.elsewhere) == (True, True)
    seen.after()
    seen.cluster.devices.put(told(version=9))
    view = seen.cluster.node_views["n1"].devices
    assert view is not None
    assert not view.elsewhere
    assert seen.after()[1], "jobs that wait look again"


def test_the_successor_of_an_agents_pod_speaks_for_the_node(seen: Seen) -> None:
    seen.cluster.agents.put(agent(False))
    seen.cluster.agents.put(agent(True, name="agent-y"))
    assert seen.cluster.agent_ready("n1")
    seen.cluster.agents.drop("trainyard-system/agent-x", 9)
    seen.cluster.agents.drop("trainyard-system/agent-y", 9)
    assert seen.cluster.agent_ready("n1") is None


def test_nothing_of_a_node_that_is_gone_stays(seen: Seen) -> None:
    seen.cluster.devices.put(told(name="n2"))
    assert "n2" not in seen.cluster.node_views
    seen.cluster.nodes.drop("n1", 9)
    assert seen.cluster.node_views == {}
    seen.cluster.devices.drop("n1", 9)
    assert seen.cluster.devices.get("n1") is None


@pytest.mark.parametrize("first", ["told of its new place", "told that it is gone"])
def test_a_pod_that_loses_our_label_still_takes_its_place(first: str) -> None:
    """It leaves one watch and enters the other, in either order."""
    cluster = Seen().cluster
    other: Object = {"metadata": {"namespace": "a", "name": "p", "resourceVersion": "4"}, "spec": {
        "nodeName": "n1", "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}}
    cluster.bound_here.put(other)
    assert cluster.ledger.used["n1"]["cpu"] == 2000
    there = {**other, "metadata": {**other["metadata"], "resourceVersion": "5"}}
    if first == "told of its new place":
        cluster.bound.put(there)
    cluster.bound_here.drop("a/p", 5)
    cluster.bound.put(there)
    assert cluster.ledger.used["n1"]["cpu"] == 2000
    cluster.bound.drop("a/p", 6)
    assert not cluster.ledger.used
