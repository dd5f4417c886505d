"""The backends observe and auto, with kubelet's PodResources on a real socket."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from trainyard.agent.auto import Auto
from trainyard.agent.host import Host
from trainyard.agent.observe import Observe
from trainyard.agent.podresources import PodResources
from trainyard.agent.types import Reading, Unreadable
from trainyard.api.devices import Device, NodeDevicesSpec
from unit.agent.kubelet import Api, Kubelet, running
from unit.agent.test_mindcluster import compact, lists, published

NPU = "huawei.com/Ascend910"
GPU = "nvidia.com/gpu"
CONFIG = "/api/v1/namespaces/kube-system/configmaps/mindx-dl-deviceinfo-node-a"
CARDS = [f"Ascend910-{number}" for number in range(4)]


def observe(api: Api, pods: PodResources, resource: str = NPU) -> Observe:
    return Observe(api, "node-a", pods, resource, pause=0.01)


def spec(backend: str = "observe", resource: str = NPU, cards: list[str] = CARDS) -> NodeDevicesSpec:
    return NodeDevicesSpec.model_validate({"node": "node-a", "resource": resource, "backend": backend, "devices": [
        Device(id=name, physical=number) for number, name in enumerate(cards)]})


def pod(name: str, real: str = "", *, version: int = 1, phase: str = "Running", resource: str = NPU,
        **health: str) -> dict[str, Any]:
    """A pod of the node, with MindCluster's word on its devices or kubelet's."""
    told = [{"name": resource, "resources": [{"resourceID": each.replace("_", "-"), "health": state}
                                             for each, state in health.items()]}]
    return {f"/api/v1/namespaces/ns/pods/{name}": {
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": str(version),
                     "annotations": {"huawei.com/AscendReal": real} if real else {}},
        "status": {"phase": phase, "containerStatuses": [{"name": "c", "allocatedResourcesStatus": told}]}}}


def ids(found: Reading | Unreadable) -> tuple[set[str], set[str]]:
    """Devices that are ill, and those of which nothing is known."""
    assert isinstance(found, Reading), str(found)
    return set(found.faults), set(found.unknown)


def config(device_list: dict[str, str], **more: Any) -> dict[str, Any]:
    data = published(device_list, int(time.time()), **more)
    return {CONFIG: {"kind": "ConfigMap", "data": data, "metadata": {
        "name": "mindx-dl-deviceinfo-node-a", "namespace": "kube-system", "resourceVersion": "5"}}}


async def first(backend: Observe | Auto) -> Reading | Unreadable:
    readings = backend.readings()
    try:
        return await anext(readings)
    finally:
        await readings.aclose()  # type: ignore[attr-defined]


async def good(backend: Observe | Auto) -> Reading:
    found = await first(backend)
    assert isinstance(found, Reading), str(found)
    return found


async def test_any_vendors_plugin_is_watched_through_kubelet(tmp_path: Path) -> None:
    cards = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]
    kubelet = Kubelet(GPU, cards, {"GPU-bb22": "ns/train-0"})
    async with running(kubelet, tmp_path) as pods:
        backend = observe(Api(), pods)
        found = await good(backend)
        assert (found.facts.resource, found.facts.model, found.faults, found.holders) == (GPU, "Other", {}, None)
        assert [(device.id, device.physical) for device in found.facts.devices] == list(zip(cards, range(3)))
        kubelet.well.remove("GPU-bb22")
        ill = await backend.read()
        assert isinstance(ill, Reading)
        assert [(name, faults[0].code) for name, faults in ill.faults.items()] == [("GPU-bb22", "NotAllocatable")]
        assert len(ill.facts.devices) == 3
        kubelet.well.append("GPU-bb22")
        kubelet.well.append("GPU-0099")  # a device that turns up later takes no number from the others
        again = await backend.read()
        assert isinstance(again, Reading)
        assert again.faults == {}
        assert [device.id for device in again.facts.devices] == [*cards, "GPU-0099"]


async def test_a_plugin_that_is_gone_makes_health_unknown_not_ill(tmp_path: Path) -> None:
    kubelet = Kubelet(GPU, ["GPU-1", "GPU-2"])
    async with running(kubelet, tmp_path) as pods:
        backend = observe(Api(), pods)
        await good(backend)
        kubelet.well = []
        gone = await backend.read()
        assert isinstance(gone, Unreadable)
        assert gone.reason == "PluginGone"


async def test_what_kubelet_says_of_a_pods_devices_counts_when_it_offers_none(tmp_path: Path) -> None:
    """All ill, or a plugin that is gone: kubelet offers none either way, but pods keep the plugin's last word."""
    api = Api(pod("mine", resource=GPU, GPU_1="Unhealthy", GPU_2="Healthy")
              | pod("done", phase="Succeeded", resource=GPU, GPU_3="Unhealthy"))
    kubelet = Kubelet(GPU, [], {"GPU-1": "ns/mine", "GPU-2": "ns/mine"})
    async with running(kubelet, tmp_path) as pods:
        backend = observe(api, pods)
        readings = backend.readings()
        assert ids(await anext(readings)) == ({"GPU-1"}, {"GPU-2"})
        api.say(next(iter(pod("mine", version=8, resource=GPU, GPU_1="Unhealthy", GPU_2="Unhealthy").values())))
        while (found := ids(await anext(readings))) == ({"GPU-1"}, {"GPU-2"}):
            pass
        assert found == ({"GPU-1", "GPU-2"}, set())
        kubelet.well = ["GPU-1"]  # asked just now: the pod's status is older
        assert ids(await backend.read()) == ({"GPU-2"}, set())
        api.say(next(iter(pod("mine", version=9, resource=GPU, GPU_1="Healthy", GPU_2="nonsense").values())))
        kubelet.well = []
        while isinstance(gone := await anext(readings), Reading):
            pass
        assert gone.reason == "PluginGone"
        await readings.aclose()  # type: ignore[attr-defined]


async def test_a_pods_word_is_heard_at_once(tmp_path: Path) -> None:
    api, kubelet = Api(), Kubelet(GPU, ["GPU-1"], {"GPU-1": "ns/mine"})
    async with running(kubelet, tmp_path) as pods:
        backend = Observe(api, "node-a", pods, GPU, pause=60)
        readings = backend.readings()
        assert ids(await anext(readings)) == (set(), set())
        kubelet.well = []
        api.say(next(iter(pod("mine", version=8, resource=GPU, GPU_1="Unhealthy").values())))
        async with asyncio.timeout(10):
            assert ids(await anext(readings)) == ({"GPU-1"}, set())
        await readings.aclose()  # type: ignore[attr-defined]


async def test_a_device_that_was_ill_before_the_agent_started_is_not_forgotten(tmp_path: Path) -> None:
    async with running(Kubelet(NPU, CARDS[:3]), tmp_path) as pods:
        backend = observe(Api(), pods)
        backend.learn({"accelerator-type": "module", "huawei.com/topotree.rackid": "r1"},
                      {"baseDeviceInfos": compact({"Ascend910-2": {"IP": "10.0.0.2", "SuperDeviceID": 9}})})
        backend.recall(spec())
        found = await good(backend)
        assert list(found.faults) == ["Ascend910-3"]
        assert (found.facts.model, found.facts.rack) == ("910A", "r1")
        assert (found.facts.devices[2].ip, found.facts.devices[2].super_device) == ("10.0.0.2", "9")


async def test_no_devices_and_no_kubelet_are_named(tmp_path: Path) -> None:
    kubelet = Kubelet("example.com/fpga", ["fpga-0"])
    async with running(kubelet, tmp_path) as pods:
        found = await first(observe(Api(), pods))
        assert isinstance(found, Unreadable)
        assert found.reason == "NoDevices"
        assert "found example.com/fpga" in found.message
    found = await first(observe(Api(), PodResources(tmp_path / "none.sock")))
    assert isinstance(found, Unreadable)
    assert found.reason == "KubeletUnreadable"


async def test_mindclusters_word_counts_and_its_annotation_says_who_holds_what(tmp_path: Path) -> None:
    """In its Volcano mode kubelet has given away 0 and 1, and the pod has 2 and 3."""
    fault = [{"fault_type": "CardUnhealthy", "npu_name": "Ascend910-3", "fault_level": "RestartBusiness",
              "fault_code": "80E01801"}]
    api = Api(config(lists("Ascend910-0,Ascend910-1", Fault=compact(fault), Unhealthy="Ascend910-3"), SuperPodID=2)
              | pod("train-0", "Ascend910-2,Ascend910-3") | pod("plain"))
    kubelet = Kubelet(NPU, CARDS, {CARDS[0]: "ns/train-0", CARDS[1]: "ns/train-0"})
    async with running(kubelet, tmp_path) as pods:
        backend = observe(api, pods)
        found = await good(backend)
        assert [device.id for device in found.facts.devices] == CARDS
        assert found.facts.super_pod == "2"
        assert found.holders == {"Ascend910-2": "ns/train-0", "Ascend910-3": "ns/train-0"}
        assert {name: [fault.code for fault in faults] for name, faults in found.faults.items()} == {
            "Ascend910-3": ["80E01801"]}
        assert found.facts.remapped
        # A pod without the annotation holds what kubelet says.
        kubelet.held = {CARDS[0]: "ns/train-0", CARDS[1]: "ns/plain"}
        found_again = await backend.read()
        assert isinstance(found_again, Reading)
        assert found_again.holders == {
            "Ascend910-1": "ns/plain", "Ascend910-2": "ns/train-0", "Ascend910-3": "ns/train-0"}


async def test_whether_mindcluster_gives_out_other_devices_shows_in_the_pods(tmp_path: Path) -> None:
    api = Api(config(lists("Ascend910-0,Ascend910-1")) | pod("same", "Ascend910-0"))
    kubelet = Kubelet(NPU, CARDS, {CARDS[0]: "ns/same"})
    async with running(kubelet, tmp_path) as pods:
        backend = observe(api, pods)
        backend.recall(spec().model_copy(update={"remapped": True}))
        assert not (await good(backend)).facts.remapped, "kubelet's own choice, and nobody else's"
    picked = pod("picked", "Ascend910-0")
    next(iter(picked.values()))["metadata"]["annotations"][NPU] = "Ascend910-0"
    api = Api(config(lists("Ascend910-0,Ascend910-1")) | picked)
    kubelet = Kubelet(NPU, CARDS, {CARDS[0]: "ns/picked"})
    async with running(kubelet, tmp_path) as pods:
        backend = observe(api, pods)
        assert (await good(backend)).facts.remapped, "its scheduler has picked the device, though the same one"
        kubelet.held = {}
        again = await backend.read()
        assert isinstance(again, Reading)
        assert again.facts.remapped, "nobody says otherwise"


async def test_an_altered_configmap_is_not_believed(tmp_path: Path) -> None:
    objects = config(lists("Ascend910-0,Ascend910-1", Unhealthy="Ascend910-1"))
    objects[CONFIG]["data"]["DeviceInfoCfg"] = objects[CONFIG]["data"]["DeviceInfoCfg"].replace("910-1", "910-2")
    async with running(Kubelet(NPU, CARDS), tmp_path) as pods:
        found = await first(observe(Api(objects), pods))
        assert isinstance(found, Unreadable)
        assert found.reason == "MindClusterUnreadable"


class Node:
    """Where `auto` has to choose."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.npu_smi = folder / "npu-smi"

    def driver(self) -> None:
        self.npu_smi.write_text("#!/bin/sh\nexit 1\n")
        self.npu_smi.chmod(0o755)

    def auto(self, pods: PodResources, api: Api | None = None, quiet: float = 0.0) -> Auto:
        return Auto(api or Api(), "node-a", pods, NPU, self.plugins, "trainyard.sock",
                    Host(npu_smi=str(self.npu_smi)), quiet=quiet)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_auto_serves_where_nobody_else_does(node: Node) -> None:
    node.driver()
    async with running(Kubelet(NPU), node.folder) as pods:
        backend = node.auto(pods)
        undecided = backend.name
        found = await first(backend)
        assert undecided == "observe"  # registers nothing until it is known that nobody else does
        assert backend.name == "npu-smi"
        assert isinstance(found, Unreadable)
        assert found.reason == "ToolFails"


async def test_auto_observes_what_kubelet_has_from_somebody_else(node: Node) -> None:
    node.driver()
    async with running(Kubelet(NPU, CARDS), node.folder) as pods:
        backend = node.auto(pods)
        assert len((await good(backend)).facts.devices) == 4
        assert backend.name == "observe"


async def test_auto_observes_where_another_plugin_listens_and_ignores_dead_sockets(node: Node) -> None:
    node.driver()
    async with running(Kubelet(NPU), node.folder) as pods:
        server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), node.plugins / "Ascend910.sock")
        backend = node.auto(pods)
        await first(backend)
        assert backend.name == "observe"
        server.close()
        await server.wait_closed()
        assert (node.plugins / "Ascend910.sock").exists()
        backend = node.auto(pods)
        await first(backend)
        assert backend.name == "npu-smi"


async def test_auto_observes_where_mindcluster_looks_after_the_node(node: Node) -> None:
    node.driver()
    async with running(Kubelet(NPU), node.folder) as pods:
        backend = node.auto(pods, Api(config(lists("Ascend910-0"))))
        assert [device.id for device in (await good(backend)).facts.devices] == ["Ascend910-0"]
        assert backend.name == "observe"


async def test_auto_observes_gpus_where_there_is_no_driver_of_npus(node: Node) -> None:
    node.npu_smi.mkdir()  # what a container's mount of a missing file leaves
    kubelet = Kubelet(NPU)
    kubelet.more = {GPU: ["GPU-1"]}
    async with running(kubelet, node.folder) as pods:
        assert (await good(node.auto(pods))).facts.resource == GPU


async def test_auto_waits_for_other_plugins_and_for_devices(node: Node) -> None:
    async with running(Kubelet(NPU), node.folder) as pods:
        nothing = await first(node.auto(pods))
        assert isinstance(nothing, Unreadable)
        assert nothing.reason == "NoDevices"
        node.driver()
        waiting = await first(node.auto(pods, quiet=60))
        assert isinstance(waiting, Unreadable)
        assert waiting.reason == "Choosing"
        backend = node.auto(pods, quiet=60)
        backend.recall(spec("npu-smi"))  # it served before: no need to wait
        await first(backend)
        assert backend.name == "npu-smi"
    async with running(Kubelet(NPU, CARDS), node.folder) as pods:  # kubelet still has those of the agent before
        backend = node.auto(pods, quiet=60)
        backend.recall(spec("npu-smi"))
        early = await first(backend)
        assert isinstance(early, Unreadable)
        assert early.reason == "Choosing"
        assert backend.name == "observe"
        backend = node.auto(pods)
        backend.recall(spec("npu-smi"))
        assert len((await good(backend)).facts.devices) == 4
    unknown = await first(node.auto(PodResources(node.folder / "none.sock")))
    assert isinstance(unknown, Unreadable)
    assert unknown.reason == "KubeletUnreadable"


async def test_devices_that_were_named_anew_make_room(tmp_path: Path) -> None:
    """A plugin that shares or partitions devices names other ones each time."""
    kubelet = Kubelet(GPU, [f"GPU-{number}" for number in range(200)])
    async with running(kubelet, tmp_path) as pods:
        backend = observe(Api({}), pods, GPU)
        assert len((await good(backend)).facts.devices) == 200
        kubelet.well = [f"MIG-{number}" for number in range(200)]
        found = await backend.read()
        assert isinstance(found, Reading)
        assert {device.id[:3] for device in found.facts.devices} == {"MIG"}
        kubelet.well = [f"GPU-{number}" for number in range(300)]
        many = await backend.read()
        assert isinstance(many, Unreadable)
        assert many.reason == "TooManyDevices"
