"""A stand-in for kubelet that speaks the device plugin protocol over the same kind of sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from trainyard.agent.wire import deviceplugin_pb2 as pb
from trainyard.agent.wire import deviceplugin_pb2_grpc as rpc


class Kubelet(rpc.RegistrationServicer):
    """Takes registrations and listens, as kubelet does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registered: list[str] = []
        self.lists: list[dict[str, str]] = []
        self.listens = True
        self._server: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def newest(self) -> dict[str, str]:
        """The last list of devices, {} before there is one."""
        return self.lists[-1] if self.lists else {}

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:
        assert (request.version, request.options.pre_start_required) == ("v1beta1", True)
        assert request.options.get_preferred_allocation_available
        self.registered.append(request.resource_name)
        if self.listens:
            task = asyncio.create_task(self._listen(request.endpoint))
            self._tasks.add(task)
        return pb.Empty()

    async def _listen(self, endpoint: str) -> None:
        try:
            async with grpc.aio.insecure_channel(f"unix:{self.folder / endpoint}") as channel:
                async for answer in rpc.DevicePluginStub(channel).ListAndWatch(pb.Empty()):
                    self.lists.append({device.ID: device.health for device in answer.devices})
        except grpc.RpcError:
            pass

    async def start(self) -> None:
        """Like kubelet, it deletes every socket that it finds."""
        for path in self.folder.iterdir():
            path.unlink()
        self._server = grpc.aio.server()
        rpc.add_RegistrationServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.folder}/kubelet.sock")
        await self._server.start()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._server.stop(0)
