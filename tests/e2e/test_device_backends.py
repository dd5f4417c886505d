"""The agents of real clusters: npu-smi, which may do anything, and another vendor's plugin, which is only observed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.device_jobs import TABLE, Run
from e2e.plain_pods import Pods
from harness.devices import AGENT_LABEL, RESOURCE, Devices
from harness.foreign import Foreign
from harness.installation import Yard
from harness.npu_smi import NpuSmi

OURS, THEIRS = "node-1", "node-2"  # where npu-smi serves, and where another plugin does


def _usual(yard: Yard) -> list[str]:
    """What there is in the places where a driver usually is."""
    return [yard.cluster.run_on(node, "sh", "-c", "ls -d /usr/local/Ascend /usr/local/dcmi /etc/hccn.conf; true")
            for node in (OURS, THEIRS)]


@pytest.fixture(scope="module")
def before(yard: Yard) -> list[str]:
    """The same before any agent with a driver was there."""
    return _usual(yard)


@pytest.fixture(scope="module")
def driver(yard: Yard, before: list[str]) -> Iterator[NpuSmi]:
    """Every node has the program, whoever serves its devices; agents come with the label."""
    yard.cluster.kubectl("label", "nodes", "--all", f"{AGENT_LABEL}-")
    made = NpuSmi(yard)
    for node in (OURS, THEIRS):
        made.well(node)
    yield made
    yard.cluster.kubectl("label", "nodes", "--all", f"{AGENT_LABEL}-")
    made.vanishes()


@pytest.fixture(scope="module")
def foreign(yard: Yard) -> Iterator[Foreign]:
    """Another plugin of the same resource."""
    made = Foreign(yard, THEIRS, RESOURCE)
    made.stop()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def devices(yard: Yard, driver: NpuSmi, foreign: Foreign) -> Iterator[Devices]:
    """Agents on the nodes that have the label, who know of no faults before."""
    made = Devices(yard)
    yard.install()
    yard.cluster.kubectl("delete", "nodedevices", "--all")
    yield made
    yard.install()
    yard.cluster.kubectl("delete", "nodedevices", "--all")


def _install(yard: Yard, driver: NpuSmi, backend: str) -> None:
    yard.install("--set", f"agent.enabled=true,agent.backend={backend},agent.nodeSelector.{AGENT_LABEL}=here",
                 "--set-json", TABLE, *driver.arguments)


def _wait_ready(devices: Devices, node: str, reason: str, seconds: float = 60) -> str:
    """Wait until NodeDevices say this, and return the message."""
    took = devices.wait(f"{node}: {reason}", lambda: devices.ready(node).get("reason") == reason, seconds)
    print(f"{node}: {reason} after {took:.1f} s")
    return str(devices.ready(node).get("message", ""))


def test_npu_smi_serves_and_whatever_it_does_fails_closed(
        yard: Yard, driver: NpuSmi, devices: Devices, pods: Pods) -> None:
    yard.cluster.kubectl("label", "node", OURS, f"{AGENT_LABEL}=here", "--overwrite")
    _install(yard, driver, "npu-smi")
    _wait_ready(devices, OURS, "Serving")
    devices.wait("kubelet has them", lambda: devices.allocatable(OURS) == 8)
    spec = (devices.get(OURS) or {})["spec"]
    assert (spec["backend"], spec["model"], [each["ring"] for each in spec["devices"]]) == (
        "npu-smi", "910A", [0, 0, 0, 0, 1, 1, 1, 1])
    pods.make("stays", OURS, 4)
    pods.wait_running("stays")
    well = pods.health("stays")
    assert {number // 4 for number in (int(name.rpartition("-")[2]) for name in well)} in ({0}, {1})

    ill = driver.alarm(OURS)
    devices.wait("the alarm is told", lambda: devices.device(OURS, ill).get("health") == "Unhealthy")
    assert {each["code"] for each in devices.device(OURS, ill)["history"]} == {"80E18402", "A8028801"}
    driver.well(OURS)
    devices.wait("it is well", lambda: devices.device(OURS, ill).get("health") == "Healthy")
    devices.wait("kubelet has it back", lambda: devices.allocatable(OURS) == 8)
    before = pods.health("stays")

    def closed(reason: str, *words: str) -> None:
        message = _wait_ready(devices, OURS, reason)
        assert all(word in message for word in words), message
        assert devices.ready(OURS)["status"] == "False"
        assert {each["health"] for each in (devices.get(OURS) or {})["status"]["devices"]} == {"Unknown"}
        devices.wait("nothing for new pods", lambda: devices.allocatable(OURS) == 4)
        assert pods.running("stays")
        assert pods.health("stays") == before
        driver.back()
        driver.well(OURS)
        _wait_ready(devices, OURS, "Serving")
        devices.wait("all are offered again", lambda: devices.allocatable(OURS) == 8)

    driver.prints(OURS, "Segmentation fault\n", "info")
    closed("ToolUnreadable", "npu-smi info", "Segmentation fault")
    driver.vanishes()
    closed("ToolMissing", "/npu/npu-smi")
    driver.hangs(OURS)
    closed("ToolHangs", "npu-smi info")
    assert pods.container("stays")["restartCount"] == 0


def test_auto_serves_again_and_observes_beside_another_plugin(
        yard: Yard, driver: NpuSmi, foreign: Foreign, devices: Devices, pods: Pods) -> None:
    foreign.says(**{f"Ascend910_{number}": "Healthy" for number in range(4)})
    foreign.start()
    devices.wait("the other plugin serves", lambda: devices.allocatable(THEIRS) == 4)
    _install(yard, driver, "auto")
    yard.cluster.kubectl("label", "node", THEIRS, f"{AGENT_LABEL}=here", "--overwrite")
    _wait_ready(devices, THEIRS, "Observing")
    _wait_ready(devices, OURS, "Serving")
    assert [(devices.get(node) or {})["spec"]["backend"] for node in (OURS, THEIRS)] == ["npu-smi", "observe"]
    sockets = yard.cluster.run_on(THEIRS, "ls", "/var/lib/kubelet/device-plugins")
    assert "trainyard.sock" not in sockets, "two plugins of one resource replace each other"

    pods.make("mine", THEIRS, 2)
    pods.wait_running("mine")
    held = sorted(pods.health("mine"))
    devices.wait("who holds what is told", lambda: devices.device(THEIRS, held[0]).get("pod"))
    said = {f"Ascend910_{number}": "Healthy" for number in range(4)}
    foreign.says(**{**said, held[1].replace("-", "_"): "Unhealthy"})
    took = devices.wait("the fault is told", lambda: devices.device(THEIRS, held[1]).get("health") == "Unhealthy")
    print(f"observed fault: NodeDevices after {took:.1f} s")
    assert devices.device(THEIRS, held[1])["code"] == "NotAllocatable"
    assert devices.device(THEIRS, held[0])["health"] == "Healthy"

    foreign.says(**dict.fromkeys(said, "Unhealthy"))  # kubelet offers none: the pod's status tells ill from gone
    devices.wait("both are ill", lambda: all(devices.device(THEIRS, each)["health"] == "Unhealthy" for each in held))
    free = [name.replace("_", "-") for name in said if name.replace("_", "-") not in held]
    assert {devices.device(THEIRS, name)["health"] for name in free} == {"Unknown"}
    foreign.says(**said)
    devices.wait("all are well", lambda: (devices.get(THEIRS) or {})["status"]["healthy"] == "4/4")
    foreign.stop()
    assert "plugin is gone" in _wait_ready(devices, THEIRS, "PluginGone")
    assert pods.running("mine")
    foreign.start()
    _wait_ready(devices, THEIRS, "Observing")


def test_a_job_leaves_a_device_that_another_plugin_calls_ill(
        yard: Yard, foreign: Foreign, devices: Devices, namespace: str) -> None:
    yard.cluster.kubectl("cordon", OURS)
    try:
        run = Run(yard, devices, namespace, "observed", nodes=1, per_node=1, steps=60)
        run.hold()
        run.wait_steps(5)
    finally:
        yard.cluster.kubectl("uncordon", OURS)
    node, ids = run.place(0)
    assert node == THEIRS
    foreign.says(**{f"Ascend910_{number}": "Unhealthy" if f"Ascend910-{number}" in ids else "Healthy"
                    for number in range(4)})
    (recovery,) = run.recoveries(1)
    assert recovery["cause"] == "DeviceFault"
    assert ids[0] in recovery["culprit"]
    run.succeeded()


def test_nodes_without_a_driver_are_left_as_they_are(yard: Yard, before: list[str]) -> None:
    assert _usual(yard) == before
