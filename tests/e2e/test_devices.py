"""Devices on a real kubelet: the agent's device plugin under allocation, faults, restarts and bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e.device_jobs import installed
from e2e.plain_pods import Pods
from harness.devices import Devices
from harness.installation import SYSTEM, Yard
from harness.job import Object, Timeout
from trainyard.cli.__main__ import main

NPU, A3, BARE = "node-1", "node-2", "node-3"


@pytest.fixture(scope="module")
def devices(yard: Yard) -> Iterator[Devices]:
    """node-1 has eight NPUs of an 910A, node-2 sixteen dies of an A3, node-3 nothing."""
    with installed(yard, _nodes()) as made:
        yield made


def _nodes() -> dict[str, Any]:
    return {NPU: {"model": "910A", "superPod": "sp-{number}", "ip": "10.20.{number}.{device}"}, A3: {"model": "A3"}}


@pytest.fixture(autouse=True)
def _sound(devices: Devices) -> None:
    """Every test begins with all devices healthy and served."""
    devices.describe(_nodes())
    devices.wait_served()


def numbers(names: list[str]) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in names]


def test_nodes_say_what_they_have(devices: Devices) -> None:
    found = devices.get(NPU)
    assert found is not None
    assert (found["spec"]["model"], found["spec"]["superPod"]) == ("910A", "sp-1")
    assert found["spec"]["devices"][5] == {
        "id": "Ascend910-5", "physical": 5, "ring": 1, "module": 5, "ip": "10.20.1.5", "superDevice": ""}
    assert found["metadata"]["ownerReferences"][0]["kind"] == "Node"
    assert devices.get(BARE) is None
    assert devices.allocatable(BARE) == 0


def test_a_container_stays_in_one_ring_and_gets_whole_modules(devices: Devices, pods: Pods) -> None:
    for number, count in enumerate((1, 4, 2, 1)):  # one after the other: the ring that is whole must stay so for the 4
        pods.make(f"ring-{number}", NPU, count)
        pods.make(f"module-{number}", A3, (1, 2, 4, 1)[number])
        pods.wait_running(f"ring-{number}", f"module-{number}")
    in_ring = {pod.rpartition("/")[2]: numbers(ids) for pod, ids in devices.held(NPU).items()}
    assert {name: len(found) for name, found in in_ring.items()} == {"ring-0": 1, "ring-1": 4, "ring-2": 2, "ring-3": 1}
    for name, found in in_ring.items():
        assert len({number // 4 for number in found}) == 1, f"{name} is split over two rings: {in_ring}"
    in_modules = {pod.rpartition("/")[2]: numbers(ids) for pod, ids in devices.held(A3).items()}
    for name in ("module-1", "module-2"):
        assert {number ^ 1 for number in in_modules[name]} == set(in_modules[name]), in_modules
    assert in_modules["module-3"] == [in_modules["module-0"][0] ^ 1], f"a second module was broken up: {in_modules}"
    visible = pods.yard.cluster.kubectl("exec", "-n", pods.namespace, "ring-1", "--", "python3", "-c",
                                        "import os; print(os.environ['ASCEND_VISIBLE_DEVICES'])")
    assert visible.strip() == ",".join(map(str, in_ring["ring-1"]))
    devices.wait("NodeDevices know all holders", lambda: (devices.get(NPU) or {})["status"]["free"] == "0+0")
    holder = devices.device(NPU, f"Ascend910-{in_ring['ring-0'][0]}")["pod"]
    assert holder == f"{pods.namespace}/ring-0"


def test_a_fault_is_seen_at_once_and_keeps_containers_off(devices: Devices, pods: Pods) -> None:
    pods.make("user", NPU, 1)
    pods.wait_running("user")
    device = devices.held(NPU)[f"{pods.namespace}/user"][0]
    assert pods.health("user") == {device: "Healthy"}
    devices.fault(NPU, device)
    began = time.monotonic()
    pod, noted = 0.0, 0.0
    while not (pod and noted):
        now = time.monotonic() - began
        assert now < 20, (pods.health("user"), devices.device(NPU, device))
        pod = pod or (now if pods.health("user") == {device: "Unhealthy"} else 0.0)
        noted = noted or (now if devices.device(NPU, device).get("code") == "80E01801" else 0.0)
    print(f"fault: pod's allocatedResourcesStatus after {pod * 1000:.0f} ms, NodeDevices after {noted * 1000:.0f} ms")
    assert devices.device(NPU, device)["health"] == "Unhealthy"
    assert pods.running("user"), "a running container is the operator's to move"

    pods.yard.cluster.kubectl("exec", "-n", pods.namespace, "user", "--", "touch", "/dev/shm/stop")
    def refusal() -> bool:
        return device in (pods.container("user").get("state", {}).get("waiting") or {}).get("message", "")
    devices.wait("its container is not started again", refusal)
    assert "80E01801" in pods.container("user")["state"]["waiting"]["message"]
    devices.wait("kubelet counts it out", lambda: devices.allocatable(NPU) == 7)

    devices.heal(NPU, device)
    devices.wait("its probation is over", lambda: devices.device(NPU, device)["health"] == "Healthy")
    devices.wait("kubelet counts it in", lambda: devices.allocatable(NPU) == 8)
    pods.wait_running("user", restarts=1)


def test_unknown_health_is_not_ill_health(devices: Devices, pods: Pods) -> None:
    pods.make("stays", NPU, 2)
    pods.wait_running("stays")
    before = pods.health("stays")
    devices.unreadable(NPU, "the tool hangs")
    devices.wait("NodeDevices say so", lambda: devices.ready(NPU)["status"] == "False")
    assert devices.ready(NPU)["reason"] == "HealthUnreadable"
    assert "the tool hangs" in devices.ready(NPU)["message"]
    assert {each["health"] for each in (devices.get(NPU) or {})["status"]["devices"]} == {"Unknown"}
    devices.wait("nothing is left for new pods", lambda: devices.allocatable(NPU) == 2)
    devices.wait("the agent is not Ready", lambda: not _ready(devices.agent(NPU)))
    pods.make("waits", NPU, 1)
    assert pods.health("stays") == before == dict.fromkeys(before, "Healthy")
    assert pods.running("stays")
    assert not pods.running("waits")
    devices.unreadable(NPU, "")
    devices.wait_served()
    pods.wait_running("waits")
    assert pods.container("stays")["restartCount"] == 0


def test_a_bad_file_changes_nothing_but_is_named(devices: Devices) -> None:
    devices.fault(NPU, "Ascend910-1")
    devices.wait("the fault is seen", lambda: devices.device(NPU, "Ascend910-1").get("code"))
    devices.write("nodes: {node-1: {model: 910C}}")
    devices.wait("the file is named", lambda: devices.ready(NPU)["reason"] == "InvalidDevices")
    said = devices.ready(NPU)
    assert said["status"] == "True"
    assert "nodes.node-1.model" in said["message"]
    assert devices.device(NPU, "Ascend910-1")["code"] == "80E01801", "the last good state counts"
    assert devices.get(BARE) is None
    devices.wait("an Event says so", lambda: any(
        event.involved_object.kind == "NodeDevices" and "nodes.node-1.model" in event.message
        for event in devices.yard.api.core.list_namespaced_event(
            "default", field_selector=f"involvedObject.name={NPU},reason=InvalidDevices").items))  # fmt: skip


def _ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions") or ())


def test_the_plugin_comes_back_whatever_is_restarted(yard: Yard, devices: Devices, pods: Pods) -> None:
    yard.needs("kubelet")
    yard.needs("containerd")
    pods.make("lives", NPU, 2)
    pods.wait_running("lives")
    mine = devices.held(NPU)[f"{pods.namespace}/lives"]

    def kill_agent() -> None:
        yard.api.core.delete_namespaced_pod(devices.agent(NPU)["metadata"]["name"], SYSTEM, grace_period_seconds=0)

    def restart_kubelet() -> None:
        yard.cluster.kill("kubelet", NPU)
        yard.cluster.start("kubelet", NPU)

    def restart_containerd() -> None:
        yard.cluster.kill("containerd", NPU)
        yard.cluster.start("containerd", NPU)

    def remove_socket() -> None:
        devices.in_agent(NPU, "import os; os.unlink('/var/lib/kubelet/device-plugins/trainyard.sock')")

    for what in (kill_agent, restart_kubelet, restart_containerd, remove_socket):
        began = time.monotonic()
        what()
        name = f"after-{what.__name__.replace('_', '-')}"
        _make_until_admitted(pods, name)
        print(f"{what.__name__}: a new pod has its device after {time.monotonic() - began:.1f} s")
        devices.wait_served()
        devices.wait("the agent is Ready", lambda: _ready(devices.agent(NPU)))
        assert pods.container("lives")["restartCount"] == 0
        assert devices.held(NPU)[f"{pods.namespace}/lives"] == mine
        pods.delete(name)


def _make_until_admitted(pods: Pods, name: str, seconds: float = 60) -> None:
    """A pod with a device, made again when kubelet turns it away, as kubelet does for a moment after a restart of its
    own or of the plugin (UnexpectedAdmissionError); a TrainingJob's pods are made again by the operator."""
    deadline = time.monotonic() + seconds
    pods.make(name, NPU, 1)
    while not pods.running(name):
        status = pods.get(name)["status"]
        if time.monotonic() > deadline:
            raise Timeout(f"{name} does not run after {seconds:.0f} s: {status}")
        if status["phase"] == "Failed":
            assert status["reason"] == "UnexpectedAdmissionError", status
            pods.delete(name)
            pods.make(name, NPU, 1)
        time.sleep(0.1)


def test_starting_containers_are_answered_from_memory(devices: Devices) -> None:
    """Asked through the socket, as kubelet asks, 200 times: at most 100 ms each, whatever else the agent does."""
    seconds = json.loads(devices.in_agent(NPU, """
import grpc, json, time
from trainyard.agent.wire import deviceplugin_pb2 as pb, deviceplugin_pb2_grpc as rpc
channel = grpc.insecure_channel("unix:/var/lib/kubelet/device-plugins/trainyard.sock")
stub, taken = rpc.DevicePluginStub(channel), []
for _ in range(200):
    begun = time.perf_counter()
    stub.PreStartContainer(pb.PreStartContainerRequest(devices_ids=["Ascend910-0"]), timeout=5)
    taken.append(time.perf_counter() - begun)
print(json.dumps(sorted(taken[1:])))
"""))  # fmt: skip
    middle, most = seconds[len(seconds) // 2], seconds[-1]
    rss = devices.in_agent(NPU, "print(next(l for l in open('/proc/1/status') if l.startswith('VmRSS')))").split()[1]
    print(f"PreStartContainer: median {middle * 1000:.1f} ms, most {most * 1000:.1f} ms; "
          f"agent's RSS {int(rss) / 1024:.0f} MiB")
    assert middle < 0.1
    assert int(rss) < 150 * 1024


def _order(yard: Yard, *line: str) -> None:
    assert main(["--kubeconfig", str(yard.cluster.kubeconfig), "devices", *line]) == 0


def test_orders_keep_new_work_off_and_let_running_work_finish(yard: Yard, devices: Devices, pods: Pods) -> None:
    pods.make("user", NPU, 1)
    pods.wait_running("user")
    device = devices.held(NPU)[f"{pods.namespace}/user"][0]
    try:
        _order(yard, "quarantine", NPU, device, "--for", "1h", "--reason", "a test")
        devices.wait("the order is obeyed", lambda: devices.device(NPU, device).get("quarantined"))
        assert devices.device(NPU, device)["health"] == "Healthy"
        assert pods.health("user") == {device: "Healthy"}
        assert pods.running("user")
        pods.delete("user")
        devices.wait("it is kept out once it is free", lambda: devices.device(NPU, device)["health"] == "Unhealthy")
        devices.wait("kubelet counts it out", lambda: devices.allocatable(NPU) == 7)
        _order(yard, "release", NPU, device)
        devices.wait("it is back", lambda: devices.device(NPU, device)["health"] == "Healthy")
        devices.wait("kubelet counts it in", lambda: devices.allocatable(NPU) == 8)
    finally:
        yard.cluster.kubectl("patch", "nodedevices", NPU, "--type=merge", "-p", '{"spec":{"orders":[]}}')


def test_what_a_device_has_had_outlives_the_agent(yard: Yard, devices: Devices) -> None:
    device = "Ascend910-6"
    before = devices.device(NPU, device).get("faults", 0)
    devices.fault(NPU, device)
    devices.wait("the fault is seen", lambda: devices.device(NPU, device).get("code"))
    devices.heal(NPU, device)
    devices.wait("its probation is over", lambda: devices.device(NPU, device)["health"] == "Healthy")
    old = devices.agent(NPU)["metadata"]["name"]
    yard.cluster.kubectl("delete", "pod", "-n", SYSTEM, old, "--grace-period=1")
    devices.wait("another agent is there", lambda: _another(devices, NPU, old))
    devices.wait_served()
    assert devices.device(NPU, device)["faults"] == before + 1
    assert devices.device(NPU, device)["history"][-1]["code"] == "80E01801"


def _another(devices: Devices, node: str, old: str) -> bool:
    try:
        agent = devices.agent(node)
    except Timeout:
        return False
    return agent["metadata"]["name"] != old and _ready(agent)
