"""The device plugin: kubelet's device plugin interface v1beta1 on a socket in kubelet's folder.

kubelet deletes the sockets in that folder when it starts, and forgets every plugin; nothing tells a plugin so. `run`
looks at both sockets a few times a second and serves and registers again when either has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from trainyard.agent.host import Host
from trainyard.agent.metrics import Metrics
from trainyard.agent.serving import Runtime, Served, grant, prefer, serve
from trainyard.agent.types import Facts
from trainyard.agent.wire import deviceplugin_pb2 as pb
from trainyard.agent.wire import deviceplugin_pb2_grpc as rpc
from trainyard.api.devices import DeviceStatus

log = logging.getLogger(__name__)

FOLDER = Path("/var/lib/kubelet/device-plugins")
"""kubelet's folder of plugins, whatever its --root-dir says."""
SOCKET = "trainyard.sock"

_LOOK_SECONDS = 0.25  # between two looks at the sockets
_FIRST_BACKOFF, _LAST_BACKOFF = 0.25, 5.0  # seconds between attempts to register
_LISTEN_SECONDS = 5.0  # kubelet opens ListAndWatch at once after a registration; later than this it has forgotten us
_CALL_SECONDS = 5.0
_PROBE_SECONDS = 1.0
# A node may have a proxy in its environment; a socket needs none.
_CHANNEL = (("grpc.enable_http_proxy", 0),)

_Identity = tuple[int, int, int]


class Plugin(rpc.DevicePluginServicer):
    """Serves what `show` was last given; registers as long as there is anything to serve."""

    def __init__(self, folder: Path, runtime: Runtime, metrics: Metrics, host: Host | None = None) -> None:
        self.folder = folder
        self.host = host or Host()
        self.runtime = runtime
        self.registered = False  # kubelet has taken the registration and listens
        self.problem = ""  # why not
        self._metrics = metrics
        self._model = ""
        self._resource = ""
        self._place = ("", "")  # super-pod and server
        self._served: dict[str, Served] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._listeners = 0
        self._server: Any = None
        self._bound: _Identity | None = None  # our socket, as it was when we made it
        self._kubelet: _Identity | None = None  # kubelet's socket, as it was when we registered
        self._asked = 0.0  # when we last registered
        self._attempt_at = 0.0
        self._backoff = _FIRST_BACKOFF

    @property
    def socket(self) -> Path:
        """Where this plugin answers."""
        return self.folder / SOCKET

    def told(self) -> dict[str, Served]:
        """What kubelet is told, by device id."""
        return dict(self._served)

    def show(self, facts: Facts, statuses: Iterable[DeviceStatus]) -> None:
        """From now on kubelet is told this."""
        if facts.resource != self._resource:
            self._served, self._kubelet = {}, None  # another resource is another registration
        self._place = (facts.super_pod, facts.server)
        served = serve(facts, statuses, self._served)
        if served == self._served and facts.resource == self._resource:
            return
        self._resource, self._model, self._served = facts.resource, facts.model, served
        self._tell()

    def hide(self) -> None:
        """This node has nothing to serve (any more)."""
        if self._resource:
            self._resource, self._served = "", {}
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    # The interface.

    async def GetDevicePluginOptions(self, request: pb.Empty, context: Any) -> pb.DevicePluginOptions:
        return _options()

    async def ListAndWatch(self, request: pb.Empty, context: Any) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The full list at once and after every change; recoveries are changes like any other."""
        self._listeners += 1
        try:
            while True:
                version, changed = self._version, self._changed
                yield pb.ListAndWatchResponse(devices=[
                    pb.Device(ID=name, health="Healthy" if served.healthy else "Unhealthy")
                    for name, served in self._served.items()])
                if version == self._version:
                    await changed.wait()
        finally:
            self._listeners -= 1

    async def GetPreferredAllocation(self, request: pb.PreferredAllocationRequest,
                                     context: Any) -> pb.PreferredAllocationResponse:
        return pb.PreferredAllocationResponse(container_responses=[
            pb.ContainerPreferredAllocationResponse(deviceIDs=prefer(
                self._model, self._served, each.available_deviceIDs, each.must_include_deviceIDs, each.allocation_size))
            for each in request.container_requests])

    async def Allocate(self, request: pb.AllocateRequest, context: Any) -> pb.AllocateResponse:
        """What the containers need; an error, which fails the pod's admission, if a device takes no new work. kubelet
        learns of a fault only after this does."""
        answers = []
        for each in request.container_requests:
            if why := self._why_not(each.devices_ids, lambda served: served.grantable):
                self._metrics.allocations.labels("refused").inc()
                log.warning("refused to allocate: %s", why)
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
            given = grant([self._served[name].device for name in each.devices_ids], self.runtime, self.host,
                          super_pod=self._place[0], server=self._place[1])
            answers.append(pb.ContainerAllocateResponse(
                envs=given.environment,
                devices=[pb.DeviceSpec(container_path=path, host_path=path, permissions="rw") for path in given.nodes],
                mounts=[pb.Mount(container_path=there, host_path=here, read_only=True)
                        for there, here in given.mounts]))
            self._metrics.allocations.labels("given").inc()
            log.info("allocated", extra={"devices": list(each.devices_ids)})
        return pb.AllocateResponse(container_responses=answers)

    async def PreStartContainer(self, request: pb.PreStartContainerRequest,
                                context: Any) -> pb.PreStartContainerResponse:
        """Keeps a container off a device that has gone bad since it was allocated. From memory, and nothing but that:
        a container of a running pod that starts again goes through here too."""
        begun = time.perf_counter()
        why = self._why_not(request.devices_ids, lambda served: served.healthy)
        self._metrics.start_seconds.observe(time.perf_counter() - begun)
        self._metrics.starts.labels("refused" if why else "allowed").inc()
        if why:
            log.warning("refused to let a container start: %s", why)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        return pb.PreStartContainerResponse()

    def _why_not(self, names: Iterable[str], allowed: Any) -> str:
        for name in names:
            served = self._served.get(name)
            if served is None:
                return f"{name} is not among the node's devices: {', '.join(self._served) or 'there are none'}"
            if not allowed(served):
                return served.why
        return ""

    # Being there.

    async def run(self) -> None:
        """Until cancelled: serve and be registered, whatever happens to kubelet and to the sockets."""
        try:
            while True:
                try:
                    await self._look()
                except (OSError, RuntimeError, grpc.RpcError) as error:
                    self._failed(error)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await self._close()

    async def answers(self) -> str:
        """What is wrong with the socket as kubelet sees it; empty if it answers."""
        try:
            async with grpc.aio.insecure_channel(f"unix:{self.socket}", options=_CHANNEL) as channel:
                await rpc.DevicePluginStub(channel).GetDevicePluginOptions(pb.Empty(), timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            return f"{self.socket} does not answer: {_words(error)}"
        return "" if self.registered else f"not registered with kubelet: {self.problem or 'not yet'}"

    async def _look(self) -> None:
        if not self._resource:
            await self._close()
            return
        if self._server is None or _identity(self.socket) != self._bound:
            await self._open()
        kubelet = _identity(self.folder / "kubelet.sock")
        now = time.monotonic()
        if kubelet != self._kubelet:  # a new kubelet, or none: what the last one said is worth nothing
            self._kubelet, self.registered, self._asked, self._attempt_at = kubelet, False, 0.0, 0.0
            self._backoff = _FIRST_BACKOFF
        if kubelet is None:
            self.problem = f"{self.folder}/kubelet.sock is not there: kubelet does not run, or keeps it elsewhere"
            return
        if self._listeners:
            self.registered, self._backoff = self._asked > 0, _FIRST_BACKOFF
        if not self._asked or (not self._listeners and now - self._asked > _LISTEN_SECONDS):
            self.registered = False
            if now >= self._attempt_at:
                await self._register()

    async def _open(self) -> None:
        await self._close()
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        server = grpc.aio.server()
        rpc.add_DevicePluginServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        self._server, self._bound, self._asked = server, _identity(self.socket), 0.0
        log.info("serving", extra={"socket": str(self.socket), "resource": self._resource})

    async def _register(self) -> None:
        request = pb.RegisterRequest(version="v1beta1", endpoint=SOCKET, resource_name=self._resource,
                                     options=_options())
        async with grpc.aio.insecure_channel(f"unix:{self.folder}/kubelet.sock", options=_CHANNEL) as channel:
            await rpc.RegistrationStub(channel).Register(request, timeout=_CALL_SECONDS)
        self._asked, self.problem = time.monotonic(), ""
        self._metrics.registrations.inc()
        log.info("registered", extra={"resource": self._resource, "devices": len(self._served)})

    def _failed(self, error: Exception) -> None:
        said = _words(error)
        if said != self.problem:
            log.warning("not registered, trying again: %s", said)
        self.problem = said
        self._attempt_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _LAST_BACKOFF)

    async def _close(self) -> None:
        server, self._server = self._server, None
        self.registered, self._asked = False, 0.0
        if server is None:
            return
        mine = _identity(self.socket) == self._bound
        await server.stop(grace=0.2)
        if mine:  # and not already the socket of the agent that comes after this one
            with contextlib.suppress(FileNotFoundError):
                self.socket.unlink()


def _options() -> pb.DevicePluginOptions:
    return pb.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)


def _identity(path: Path) -> _Identity | None:
    """Tells a socket from the next one at the same path; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _words(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
