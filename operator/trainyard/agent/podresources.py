"""kubelet's PodResources: which pod holds which device, whatever the vendor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from trainyard.agent.wire import podresources_pb2 as pb
from trainyard.agent.wire import podresources_pb2_grpc as rpc

_SECONDS = 2.0


_OPTIONS = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True, slots=True)
class Devices:
    """What kubelet knows of all devices."""

    allocatable: Mapping[str, frozenset[str]]  # ids by resource: healthy ones, those in use included
    held: Mapping[str, Mapping[str, str]]  # by resource: pod (namespace/name) by id


class PodResources:
    """Asks kubelet; its socket is opened for every call, since a new kubelet has a new one. kubelet answers 100 calls a
    second, from everybody together."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def holders(self, resource: str) -> dict[str, str]:
        """Pods (namespace/name) by the id of the device that they hold. Raises grpc.RpcError."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=_OPTIONS) as channel:
            return (await _held(rpc.PodResourcesListerStub(channel))).get(resource, {})

    async def devices(self) -> Devices:
        """All devices of all resources. Raises grpc.RpcError."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=_OPTIONS) as channel:
            lister = rpc.PodResourcesListerStub(channel)
            answer = await lister.GetAllocatableResources(pb.AllocatableResourcesRequest(), timeout=_SECONDS)
            allocatable: dict[str, frozenset[str]] = {}
            for each in answer.devices:  # one entry a device, or one a NUMA node
                before = allocatable.get(each.resource_name, frozenset())
                allocatable[each.resource_name] = before | set(each.device_ids)
            return Devices(allocatable, await _held(lister))


async def _held(lister: rpc.PodResourcesListerStub) -> dict[str, dict[str, str]]:
    answer = await lister.List(pb.ListPodResourcesRequest(), timeout=_SECONDS)
    held: dict[str, dict[str, str]] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            for each in container.devices:
                held.setdefault(each.resource_name, {}).update(
                    dict.fromkeys(each.device_ids, f"{pod.namespace}/{pod.name}"))
    return held
