"""Which backend: the driver's tools, served by ourselves, where nobody else serves the devices; else only observing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc

from trainyard.agent.host import Host
from trainyard.agent.npu_smi import NpuSmi
from trainyard.agent.observe import Observe
from trainyard.agent.podresources import Devices, PodResources
from trainyard.agent.types import Backend, BackendName, Reading, Unreadable
from trainyard.api.devices import NodeDevicesSpec
from trainyard.kube.client import ApiError, Client

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 15.0  # after a boot another plugin may take its time; two plugins of one resource replace each other


class Auto:
    """The backend that chooses one, once: whoever serves the devices goes on until the agent is started again."""

    def __init__(self, client: Client, node: str, pods: PodResources, resource: str, plugins: Path, ours: str,
                 host: Host, *, quiet: float = _QUIET_SECONDS) -> None:
        self._client, self._node, self._pods, self._resource = client, node, pods, resource
        self._plugins, self._ours, self._quiet = plugins, ours, quiet
        self._host = host
        self._before: NodeDevicesSpec | None = None
        self._learned: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
        self._chosen: Backend | None = None

    @property
    def name(self) -> BackendName:
        """The chosen one; observe, which registers nothing, until then."""
        return self._chosen.name if self._chosen else "observe"

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """For the chosen one."""
        self._learned = labels, annotations
        if self._chosen:
            self._chosen.learn(labels, annotations)

    def recall(self, spec: NodeDevicesSpec) -> None:
        """Served by ourselves before, served by ourselves again, without waiting whether somebody else turns up."""
        self._before = spec
        if self._chosen:
            self._chosen.recall(spec)

    async def readings(self) -> AsyncIterator[Reading | Unreadable]:
        """Of the chosen one; what stands in the way until there is one."""
        begun = time.monotonic()
        while self._chosen is None:
            found = await self._choose(time.monotonic() - begun >= self._quiet)
            if isinstance(found, Unreadable):
                yield found
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            log.info("backend", extra={"backend": found.name})
            found.learn(*self._learned)
            if self._before:
                found.recall(self._before)
            self._chosen = found
        async for reading in self._chosen.readings():
            yield reading

    async def _choose(self, quiet: bool) -> Backend | Unreadable:
        try:
            kubelet = await self._pods.devices()
        except grpc.RpcError as error:
            return Unreadable("KubeletUnreadable", "kubelet's PodResources do not answer, so nobody can tell who "
                              f"serves {self._resource}: {' '.join(str(error).split())[:300]}")
        ours = self._before is not None and self._before.backend == "npu-smi"
        if why := await self._served(kubelet):
            if ours and not quiet:  # the agent before this one may be on its way out: the choice is for good
                return Unreadable("Choosing", f"{why}, though this node's agent served {self._resource} before; "
                                  f"waiting {self._quiet:.0f} s whether that stays so")
            log.info("observing: %s", why)
            return Observe(self._client, self._node, self._pods, self._resource)
        if self._host.find(self._host.npu_smi).is_file():
            if quiet or ours:
                return NpuSmi(self._resource, self._host)
            return Unreadable("Choosing", f"nobody serves {self._resource} yet; waiting {self._quiet:.0f} s whether "
                              "another device plugin turns up")
        others = sorted(name for name, ids in kubelet.allocatable.items() if ids)
        if others:
            log.info("observing: no npu-smi here, and kubelet has devices of %s", ", ".join(others))
            return Observe(self._client, self._node, self._pods, self._resource)
        return Unreadable("NoDevices", f"expected {self._host.npu_smi} or devices of another plugin, found "
                          "neither: this node has no accelerators, or its driver is not installed "
                          "(agent.nodeSelector keeps the agent off nodes without any)")

    async def _served(self, kubelet: Devices) -> str:
        """Why the resource is served by another plugin; empty: it is not. Our own is not registered yet, and kubelet
        calls the devices of a plugin that has gone ill at once."""
        if kubelet.allocatable.get(self._resource):
            return f"kubelet has devices of {self._resource} already"
        kind = self._resource.rpartition("/")[2].lower()
        for socket in sorted(self._plugins.glob("*.sock")):
            if kind in socket.name.lower() and socket.name not in (self._ours, "kubelet.sock") and await _alive(socket):
                return f"another plugin listens on {socket}"
        try:
            await self._client.get(f"/api/v1/namespaces/kube-system/configmaps/mindx-dl-deviceinfo-{self._node}")
        except ApiError as error:
            if not error.not_found:
                log.info("whether MindCluster looks after this node cannot be read: %s", error)
            return ""
        return "MindCluster looks after this node"


async def _alive(socket: Path) -> bool:
    """Whether anybody listens; plugins that were removed leave their sockets behind."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(socket), 1.0)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
