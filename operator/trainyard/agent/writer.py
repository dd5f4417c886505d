"""Keeps this node's NodeDevices equal to what the agent knows.

What changes for the worse or the better goes out at once; who holds what, and what is free, a few seconds later in one
write; what has not changed, never. While the API server is away, only the newest state is kept, for when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainyard.agent.metrics import Metrics
from trainyard.api import GROUP, VERSION
from trainyard.api.devices import DeviceStatus, NodeCondition, NodeDevicesSpec, NodeDevicesStatus, Order
from trainyard.kube.client import APPLY, ApiError, Client, Object
from trainyard.kube.watch import Store, Watch

log = logging.getLogger(__name__)

BATCH_SECONDS = 3.0
"""How long holders and free counts wait for more of their kind."""
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 20.0  # seconds between attempts, before jitter
_PATH = f"/apis/{GROUP}/{VERSION}/nodedevices"
_OWNER = "trainyard-agent"  # field manager
_SLOW = ("pod",)  # fields of a device that wait
_SLOW_STATUS = ("free",)


@dataclass(frozen=True, slots=True)
class Known:
    """This node's NodeDevices as the API server has it."""

    uid: str
    spec: Mapping[str, Any]  # ours: without orders
    status: Mapping[str, Any]
    orders: tuple[Order, ...]
    devices: tuple[DeviceStatus, ...]
    ready: NodeCondition | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What NodeDevices should say."""

    spec: NodeDevicesSpec
    status: NodeDevicesStatus


def known(raw: Object, old: Known | None = None) -> Known | None:
    """Of a NodeDevices object; None if it is on its way out."""
    if raw["metadata"].get("deletionTimestamp"):
        return None
    spec = dict(raw.get("spec") or {})
    orders = tuple(Order.model_validate(order) for order in spec.pop("orders", None) or ())
    status = raw.get("status") or {}
    devices = tuple(DeviceStatus.model_validate(each) for each in status.get("devices") or ())
    conditions = [NodeCondition.model_validate(each) for each in status.get("conditions") or ()]
    return Known(raw["metadata"]["uid"], spec, status, orders, devices, conditions[0] if conditions else None)


class Writer:
    """Writes the newest state that it was offered."""

    def __init__(self, client: Client, node: str, metrics: Metrics) -> None:
        self.node_uid = ""
        """The Node's; nothing is written before it is set."""
        self.node = node
        self.store: Store[Known] = Store(known)
        self.watch = Watch(client, "NodeDevices", _PATH, self.store, {"fieldSelector": f"metadata.name={node}"})
        self._client = client
        self._metrics = metrics
        self.wanted: Wanted | None = None  # the newest state
        self._given = False  # whether anything was offered yet
        self._dirty = asyncio.Event()
        self._slow_at: float | None = None  # when slow changes go out
        self._written: tuple[Wanted, int] | None = None  # with the resource version that came of it
        self.store.listen(lambda key, old, new: self._dirty.set())

    @property
    def current(self) -> Known | None:
        """As the API server has it."""
        return self.store.get(self.node)

    def offer(self, wanted: Wanted | None) -> None:
        """This is the newest state; None: the node has no devices, and no NodeDevices."""
        if self._given and wanted == self.wanted:
            return
        self.wanted, self._given = wanted, True
        self._dirty.set()

    def wake(self) -> None:
        """Something that kept it from writing is gone."""
        self._dirty.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self.watch.synced.wait()
        wait = _FIRST_BACKOFF
        while True:
            await self._until_due()
            try:
                await self._write()
                wait = _FIRST_BACKOFF
            except ApiError as error:
                self._metrics.writes.labels("failed").inc()
                if error.not_found:
                    self.store.forget(self.node)
                log.log(logging.INFO if error.transient else logging.WARNING,
                        "NodeDevices not written, trying again: %s", error)
                await asyncio.sleep(max(error.retry_after or 0.0, wait * random.uniform(0.5, 1.5)))
                wait = min(wait * 2, _LAST_BACKOFF)
                self._dirty.set()

    async def _until_due(self) -> None:
        """Return when there is something to write now."""
        while True:
            self._dirty.clear()
            due = self._due()
            if due is not None and due <= time.monotonic():
                return
            try:
                async with asyncio.timeout(None if due is None else due - time.monotonic()):
                    await self._dirty.wait()
            except TimeoutError:
                pass

    def _due(self) -> float | None:
        """When the next write is due; None: there is nothing to write."""
        if not self._given or not self.node_uid:
            return None
        if self.wanted and self._written == (self.wanted, self.store.version(self.node)):
            return None  # said and answered; a CRD older than this agent may have dropped a field
        urgent, slow = differs(self.wanted, self.current)
        if urgent:
            return 0.0
        if not slow:
            self._slow_at = None
        elif self._slow_at is None:
            self._slow_at = time.monotonic() + BATCH_SECONDS
        return self._slow_at

    async def _write(self) -> None:
        wanted, there = self.wanted, self.current
        self._slow_at = None
        if wanted is None:
            if there:
                await self._client.write("DELETE", f"{_PATH}/{self.node}", {"preconditions": {"uid": there.uid}})
                self.store.forget(self.node)
            return
        spec = _dump_spec(wanted.spec)
        if there is None or there.spec != spec:
            await self._apply("", {"spec": spec}, {"ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node_uid}]})
        status = wanted.status.dump()
        if self.current is None or self.current.status != status:
            await self._apply("/status", {"status": status}, {})
        self._written = (wanted, self.store.version(self.node))

    async def _apply(self, part: str, body: Object, metadata: Object) -> None:
        """Server-side apply: what others own, such as spec.orders, stays as it is."""
        made = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "NodeDevices",
                "metadata": {"name": self.node, **metadata}, **body}
        answer = await self._client.write("PATCH", f"{_PATH}/{self.node}{part}", made, content_type=APPLY,
                                          query={"fieldManager": _OWNER, "force": "true"})
        self._metrics.writes.labels("done").inc()
        self.store.put(answer)


def _dump_spec(spec: NodeDevicesSpec) -> Object:
    made = spec.dump()
    made.pop("orders", None)
    return made


def differs(wanted: Wanted | None, there: Known | None) -> tuple[bool, bool]:
    """Whether what is wanted differs from what is there: in what goes out at once, in what may wait."""
    if wanted is None:
        return there is not None, False
    if there is None or there.spec != _dump_spec(wanted.spec):
        return True, False
    new, old = wanted.status.dump(), dict(there.status)
    if new == old:
        return False, False
    return _quick(new) != _quick(old), True


def _quick(status: Mapping[str, Any]) -> dict[str, Any]:
    """What of a status cannot wait."""
    made = {name: value for name, value in status.items() if name not in _SLOW_STATUS}
    made["devices"] = [{name: value for name, value in device.items() if name not in _SLOW}
                       for device in status.get("devices") or ()]
    return made
