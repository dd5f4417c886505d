"""Devices that somebody else's plugin serves: nothing is registered, only told.

With MindCluster its ConfigMap says how they are and the pods' annotation AscendReal who holds them. Otherwise kubelet
does, whatever the vendor: a device that it may not give away any more is ill; and of the devices that pods hold their
status keeps the plugin's last word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping, Set
from datetime import UTC, datetime
from typing import Literal

import grpc

from trainyard.agent import ascend, mindcluster, podwords
from trainyard.agent.mindcluster import Published
from trainyard.agent.podresources import Devices, PodResources
from trainyard.agent.podwords import PodWord, pod_word
from trainyard.agent.types import Facts, Fault, Reading, Unreadable
from trainyard.api.devices import Device, NodeDevicesSpec
from trainyard.kube.client import Client, Object
from trainyard.kube.watch import Store, Watch

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 3.0
_SETTLE_SECONDS = 0.05  # a fault changes the status of several pods
_SYNC_SECONDS = 5.0  # how long the first look waits for the ConfigMap
_NAMESPACE = "kube-system"
_DEVICE_INFO = ("huawei.com/npu.base-device-infos", "baseDeviceInfos")
_MOST = 256  # devices of a node that NodeDevices have room for
_ACCELERATORS = ("huawei.com/", "nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "gpu.intel.com/", "habana.ai/gaudi",
                 "cambricon.com/", "iluvatar.ai/", "metax-tech.com/gpu", "google.com/tpu", "aws.amazon.com/neuron")
NOT_ALLOCATABLE = "NotAllocatable"
"""Code of a device that its plugin calls ill."""


class Observe:
    """The backend. `resource` is looked for first; if nobody serves it, another accelerator is."""

    name: Literal["observe"] = "observe"

    def __init__(self, client: Client, node: str, pods: PodResources, resource: str, *,
                 pause: float = _PAUSE_SECONDS) -> None:
        self._client, self._pods, self._resource, self._pause = client, pods, resource, pause
        self._labels: Mapping[str, str] = {}
        self._annotations: Mapping[str, str] = {}
        self._known: tuple[Device, ...] = ()
        self._known_resource = ""
        self._remapped = False
        self._store: Store[Mapping[str, str]] = Store(_data)
        self._key = f"{_NAMESPACE}/mindx-dl-deviceinfo-{node}"
        self._pods_there: Store[PodWord] = Store(pod_word)
        self._watches = (
            Watch(client, "MindCluster's ConfigMap", f"/api/v1/namespaces/{_NAMESPACE}/configmaps", self._store,
                  {"fieldSelector": f"metadata.name=mindx-dl-deviceinfo-{node}"}),
            Watch(client, "the node's pods", "/api/v1/pods", self._pods_there,
                  {"fieldSelector": f"spec.nodeName={node}"}))
        self._changed = asyncio.Event()
        for store in (self._store, self._pods_there):
            store.listen(lambda key, old, new: self._changed.set())

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """Labels say what model the node is, MindCluster's annotation the addresses of its devices."""
        self._labels, self._annotations = labels, annotations

    def recall(self, spec: NodeDevicesSpec) -> None:
        """kubelet does not name ill devices: those that were there are."""
        if spec.backend == self.name:
            self._known, self._known_resource, self._remapped = tuple(spec.devices), spec.resource, spec.remapped

    async def readings(self) -> AsyncIterator[Reading | Unreadable]:
        """A look every few seconds, and whenever the ConfigMap or a pod says something new."""
        watching = [asyncio.create_task(watch.run()) for watch in self._watches]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SYNC_SECONDS):
                    for watch in self._watches:
                        await watch.synced.wait()
            while True:
                self._changed.clear()
                yield await self.read()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), self._pause)
                    await asyncio.sleep(_SETTLE_SECONDS)
        finally:
            for task in watching:
                task.cancel()

    async def read(self) -> Reading | Unreadable:
        """One look."""
        try:
            kubelet = await self._pods.devices()
        except grpc.RpcError as error:
            return Unreadable("KubeletUnreadable", "kubelet's PodResources do not answer: "
                              f"{' '.join(str(error).split())[:300]}")
        try:
            data = self._store.get(self._key)
            published = mindcluster.read(data, datetime.now(UTC)) if data is not None else None
            return self._by_mindcluster(published, kubelet) if published else self._by_kubelet(kubelet)
        except Unreadable as error:
            return error

    # MindCluster.

    def _by_mindcluster(self, published: Published, kubelet: Devices) -> Reading:
        held = kubelet.held.get(published.resource, {})
        holders = self._holders(held, published.resource)
        ids = published.devices | set(held) | set(holders) | kubelet.allocatable.get(published.resource, frozenset())
        facts = self._facts(published.resource, ids, published)
        here = {device.id for device in facts.devices}
        return Reading(facts, {name: faults for name, faults in published.faults.items() if name in here},
                       holders=holders)

    def _holders(self, held: Mapping[str, str], resource: str) -> dict[str, str]:
        """Pods by the devices that they really hold. In its Volcano mode MindCluster mounts other devices than kubelet
        has chosen, and writes which into the pod. No field says which mode it is in; the pods show it."""
        words = {pod: word for pod in set(held.values()) if (word := self._pods_there.get(pod)) is not None}
        real = {pod: word.real for pod, word in words.items() if word.real is not None}
        if real:
            self._remapped = any(
                resource in words[pod].picked or names != {name for name, of in held.items() if of == pod}
                for pod, names in real.items())
        holders = {name: pod for name, pod in held.items() if pod not in real}
        return holders | {name: pod for pod, names in real.items() for name in names}

    # kubelet.

    def _by_kubelet(self, kubelet: Devices) -> Reading:
        words = podwords.health(word for _, word in self._pods_there)
        resource = self._chosen({*kubelet.allocatable, *kubelet.held, *words})
        well, held = kubelet.allocatable.get(resource, frozenset()), kubelet.held.get(resource, {})
        said = words.get(resource, {})
        facts = self._facts(resource, well | set(held) | set(said))
        here = {device.id for device in facts.devices}
        if well:  # kubelet was asked just now; a pod's status may be a moment old
            return Reading(facts, {name: (Fault(NOT_ALLOCATABLE),) for name in here - well})
        # All are ill, or their plugin is gone: kubelet says the same of both. Pods keep its last word.
        ill = {name for name in here if said.get(name) == "Unhealthy"}
        if not ill:
            raise Unreadable("PluginGone", f"kubelet has no healthy device of {resource} any more, of "
                             f"{len(facts.devices)} that were there: their device plugin is gone, or calls all of them "
                             "ill")
        return Reading(facts, {name: (Fault(NOT_ALLOCATABLE),) for name in ill}, frozenset(here - ill))

    def _chosen(self, there: Set[str]) -> str:
        """The resource to tell of."""
        for wanted in (self._resource, self._known_resource):
            if wanted and (wanted in there or (wanted == self._known_resource and self._known)):
                return wanted
        for prefix in _ACCELERATORS:
            if fitting := sorted(name for name in there if name.startswith(prefix)):
                return fitting[0]
        raise Unreadable("NoDevices", f"expected devices of {self._resource} or of another accelerator, found "
                         f"{', '.join(sorted(there)) or 'none'}: no device plugin of theirs runs on this node, or "
                         "agent.resource names another resource")

    # Facts.

    def _facts(self, resource: str, ids: set[str] | frozenset[str], published: Published | None = None) -> Facts:
        model = (ascend.labelled_model(self._labels) if resource.startswith("huawei.com/") else None) or "Other"
        known = {device.id: device for device in self._known} if resource == self._known_resource else {}
        more = self._infos()
        devices = dict(known)
        taken = {device.physical for device in known.values()}
        for name in sorted((name for name in ids if name not in known and 0 < len(name) <= 63), key=_natural):
            physical = _physical(name, taken)
            taken.add(physical)
            devices[name] = Device(id=name, physical=physical)
        devices = {name: device.model_copy(update={
            "ring": ascend.ring(model, device.physical), "module": ascend.module(model, device.physical),
            **more.get(name, {})}) for name, device in devices.items()}
        if len(devices) > _MOST:  # devices that their plugin named anew (other partitions, say) do not come back
            devices = {name: device for name, device in devices.items() if name in ids}
        if len(devices) > _MOST:
            raise Unreadable("TooManyDevices", f"kubelet has {len(devices)} devices of {resource}; NodeDevices hold at "
                             f"most {_MOST}. Let the plugin share each device among fewer pods")
        self._known = tuple(sorted(devices.values(), key=lambda device: device.physical))
        self._known_resource = resource
        return Facts(resource, model, self._known, self._labels.get("node.kubernetes.io/npu.chip.name", "")[:63],
                     ascend.labelled(self._labels, "superpodid") or (published.super_pod if published else ""),
                     ascend.labelled(self._labels, "rackid"),
                     ascend.labelled(self._labels, "serverid") or (published.server if published else ""),
                     remapped=self._remapped and published is not None)

    def _infos(self) -> dict[str, dict[str, str]]:
        """Addresses that MindCluster notes at the Node, as fields of Device by id; nothing if it notes nonsense."""
        text = next((self._annotations[key] for key in _DEVICE_INFO if self._annotations.get(key)), "{}")
        try:
            return {str(name): {"ip": str(info.get("IP", ""))[:45],
                                "super_device": str(info["SuperDeviceID"]) if "SuperDeviceID" in info else ""}
                    for name, info in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            return {}


def _data(raw: Object, old: Mapping[str, str] | None) -> Mapping[str, str] | None:
    return dict(raw.get("data") or {})


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts Ascend910-10 behind Ascend910-9."""
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part)
            for part in re.split(r"([0-9]+)", name) if part]


def _physical(name: str, taken: set[int]) -> int:
    """The number at the end of a name such as Ascend910-3; what has none, or one that is taken, is counted."""
    match = re.search(r"-([0-9]{1,4})$", name)
    if match and int(match[1]) not in taken:
        return int(match[1])
    return next(number for number in range(len(taken) + 1) if number not in taken)
