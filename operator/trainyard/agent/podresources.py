"""kubelet's PodResources: which pod holds which device, whatever the vendor."""

from __future__ import annotations

from pathlib import Path

import grpc.aio

from trainyard.agent.wire import podresources_pb2 as pb
from trainyard.agent.wire import podresources_pb2_grpc as rpc

_SECONDS = 2.0


class PodResources:
    """Asks kubelet; its socket is opened for every call, since a new kubelet has a new one."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def holders(self, resource: str) -> dict[str, str]:
        """Pods (namespace/name) by the id of the device that they hold. Raises grpc.RpcError."""
        options = (("grpc.enable_http_proxy", 0),)
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            answer = await rpc.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=_SECONDS)
        return {device: f"{pod.namespace}/{pod.name}" for pod in answer.pod_resources for container in pod.containers
                for held in container.devices if held.resource_name == resource for device in held.device_ids}
