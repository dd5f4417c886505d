"""kubelet's PodResources on a socket, and an API server of a few objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from trainyard.agent.podresources import PodResources
from trainyard.agent.wire import podresources_pb2 as pb
from trainyard.agent.wire import podresources_pb2_grpc as rpc
from trainyard.kube.client import ApiError, Client


class Kubelet(rpc.PodResourcesListerServicer):
    """What it answers can be changed at any time."""

    def __init__(self, resource: str, well: Iterable[str] = (), held: Mapping[str, str] | None = None) -> None:
        self.resource = resource
        self.well = list(well)
        self.held = dict(held or {})  # pod by device
        self.more: dict[str, list[str]] = {}

    async def List(self, request: Any, context: Any) -> pb.ListPodResourcesResponse:
        return pb.ListPodResourcesResponse(pod_resources=[
            pb.PodResources(namespace=pod.partition("/")[0], name=pod.partition("/")[2], containers=[
                pb.ContainerResources(name="main", devices=[
                    pb.ContainerDevices(resource_name=self.resource, device_ids=[device])])])
            for device, pod in self.held.items()])

    async def GetAllocatableResources(self, request: Any, context: Any) -> pb.AllocatableResourcesResponse:
        there = [(self.resource, device) for device in self.well]
        there += [(resource, device) for resource, devices in self.more.items() for device in devices]
        return pb.AllocatableResourcesResponse(devices=[
            pb.ContainerDevices(resource_name=resource, device_ids=[device]) for resource, device in there])


@asynccontextmanager
async def running(kubelet: Kubelet, folder: Path) -> AsyncIterator[PodResources]:
    """kubelet's answers on a socket."""
    server = grpc.aio.server()
    rpc.add_PodResourcesListerServicer_to_server(kubelet, server)
    server.add_insecure_port(f"unix:{folder}/kubelet.sock")
    await server.start()
    try:
        yield PodResources(folder / "kubelet.sock")
    finally:
        await server.stop(None)


class Api(Client):
    """Answers GET from `objects` by path; its watches list once and then say what `say` is given."""

    def __init__(self, objects: Mapping[str, Any] | None = None) -> None:
        self.objects = dict(objects or {})
        self.asked: list[str] = []
        self._said: list[Any] = []

    def say(self, raw: Any) -> None:
        """A pod has changed."""
        self._said.append({"type": "MODIFIED", "object": raw})

    async def get(self, path: str, query: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Any:
        self.asked.append(path)
        if query is not None:  # a list
            found = [self.objects.get(f"{path}/{name}")] if (
                name := str(query.get("fieldSelector", "")).partition("metadata.name=")[2]) else []
            if path == "/api/v1/pods":
                assert query["fieldSelector"].startswith("spec.nodeName=")
                found = [raw for name, raw in self.objects.items() if "/pods/" in name]
            return {"metadata": {"resourceVersion": "7"}, "items": [raw for raw in found if raw]}
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return self.objects[path]

    async def stream(self, path: str, query: Mapping[str, Any], *, seconds: float) -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(0.01)
            while path == "/api/v1/pods" and self._said:
                yield self._said.pop(0)
