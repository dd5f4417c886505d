"""Carries out what the fleet of all devices asks for: quarantines, the nodes' condition, events. On the leader only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from trainyard.api import ACCELERATORS_HEALTHY, API_VERSION
from trainyard.api.devices import Order as OrderType
from trainyard.api.job import DeviceFault
from trainyard.api.times import moment, stamp
from trainyard.controller.cluster import OURS, Cluster
from trainyard.controller.events import Events, Subject
from trainyard.fleet.blame import BLAME_SECONDS, codes_to_blame
from trainyard.fleet.condition import Health
from trainyard.fleet.decide import Decision, Notice, decide
from trainyard.fleet.devices import Order
from trainyard.fleet.quarantine import Blamed, Withheld
from trainyard.kube.client import MERGE_PATCH, STRATEGIC_PATCH, ApiError, Client, NotLeading

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.2  # a fault changes several objects: look once
_PAUSE_SECONDS = 1.0  # between two looks at all devices; a cluster has tens of thousands
_LOOK_SECONDS = 60.0  # faults grow old without anybody saying so
_RETRY_SECONDS = 5.0
_WRITERS = 8  # writes side by side


class Fleet:
    """Level-triggered: `notice()` says that something has changed, `run()` brings things to where they should be."""

    def __init__(self, client: Client, cluster: Cluster, events: Events, *, quarantine_seconds: float) -> None:
        self.withheld: tuple[Withheld, ...] = ()  # what the last look left to people
        self.beat = time.monotonic()
        self._client = client
        self._cluster = cluster
        self._events = events
        self._seconds = quarantine_seconds
        self._changed = asyncio.Event()
        self._standing: frozenset[Notice] = frozenset()
        self._blamed: dict[tuple[str, str, str], datetime] = {}  # outlives the jobs; until when

    def notice(self) -> None:
        """Something about devices, agents, nodes or jobs' faults has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; what was announced before is announced by each new leader once more."""
        self._standing = frozenset()
        self._changed.set()
        while True:
            self._changed.clear()
            again = _LOOK_SECONDS
            try:
                again = await self._look()
            except (ApiError, NotLeading) as error:
                log.info("devices are looked at again in %.0f s: %s", _RETRY_SECONDS, error)
                again = _RETRY_SECONDS
            except Exception:  # a mistake of ours must not keep jobs from being looked after
                log.exception("devices could not be looked at, again in %.0f s", _RETRY_SECONDS)
                again = _RETRY_SECONDS
            await asyncio.sleep(_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), again)
                await asyncio.sleep(_SETTLE_SECONDS)

    async def _look(self) -> float:
        """One look at everything; returns seconds until the next. Raises the first ApiError of its writes, all of which
        were tried."""
        self.beat, now = time.monotonic(), datetime.now(UTC)
        made = self._decide(now)
        self.withheld = made.withheld
        try:
            await _all(self._write_orders(node, orders) for node, orders in made.orders.items())
            await _all(self._write_condition(node, health) for node, health in made.conditions.items())
        finally:
            said = {each.topic for each in self._standing}
            fresh = [each for each in made.standing if each.topic not in said]
            for notice in (*made.notices, *sorted(fresh, key=lambda each: each.topic)):
                await self._announce(notice)
            self._standing = made.standing
        ends = (made.look_again - now).total_seconds() if made.look_again else _LOOK_SECONDS
        return max(_PAUSE_SECONDS, min(_LOOK_SECONDS, ends))

    def _decide(self, now: datetime) -> Decision:
        cluster = self._cluster
        nodes = {told.node: told for _, told in cluster.devices}
        troubles = {name: view.devices.trouble for name, view in cluster.node_views.items()
                    if view.devices is not None and view.devices.trouble}
        said = {name: Health(*node.accelerators) if node.accelerators[0] else None for name, node in cluster.nodes}
        return decide(nodes, troubles, said, self._remember_blame(now), now, self._seconds)

    def _remember_blame(self, now: datetime) -> Blamed:
        """Faults that jobs are to blame for, of jobs that are gone as well."""
        for _, job in self._cluster.jobs:
            known = [fault for raw in job.status.get("deviceFaults") or () if (fault := _device_fault(raw))]
            codes = codes_to_blame(known)
            for fault in known:
                if fault.code in codes:  # a job that has ended keeps its faults for as long as it is there
                    until = (moment(fault.at) or now) + timedelta(seconds=BLAME_SECONDS)
                    key = fault.node, fault.device, fault.code
                    self._blamed[key] = max(self._blamed.get(key, until), until)
        self._blamed = {key: until for key, until in self._blamed.items() if until > now}
        return frozenset(self._blamed)

    async def _write_orders(self, node: str, orders: tuple[Order, ...]) -> None:
        """All orders of a node; the resource version keeps those that an administrator gives meanwhile."""
        values = [OrderType.model_validate({k: v for k, v in asdict(order).items() if v}).dump() for order in orders]
        body = {"metadata": {"resourceVersion": str(self._cluster.devices.version(node))}, "spec": {"orders": values}}
        raw = await self._client.write("PATCH", f"{OURS}/nodedevices/{node}", body, content_type=MERGE_PATCH,
                                       query={"fieldManager": "trainyard-operator"})
        self._cluster.devices.put(raw)

    async def _write_condition(self, node: str, health: Health | None) -> None:
        condition: dict[str, str] = {"type": ACCELERATORS_HEALTHY}
        known = self._cluster.nodes.get(node)
        if health is None:
            condition["$patch"] = "delete"
        else:
            now = stamp(datetime.now(UTC))
            condition |= {"status": health.status, "reason": health.reason, "message": health.message,
                          "lastHeartbeatTime": now}
            if known is None or known.accelerators[0] != health.status:
                condition["lastTransitionTime"] = now
        raw = await self._client.write("PATCH", f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}},
                                       content_type=STRATEGIC_PATCH, query={"fieldManager": "trainyard-operator"})
        self._cluster.nodes.put(raw)

    async def _announce(self, notice: Notice) -> None:
        told = self._cluster.devices.get(notice.node)
        about = (Subject("v1", "Node", notice.node, uid=notice.node) if notice.kind == "Node"  # kubelet's own habit
                 else Subject(API_VERSION, "NodeDevices", notice.node, uid=told.uid if told else ""))
        await self._events.send(about, notice.type, notice.reason, notice.message)


def _device_fault(raw: object) -> DeviceFault | None:
    try:
        return DeviceFault.model_validate(raw)
    except ValidationError:  # another version wrote it
        return None


async def _all(writes: Iterable[Awaitable[None]]) -> None:
    """All of them, some at a time. What is gone or was changed meanwhile is looked at again when that is heard."""
    gate = asyncio.Semaphore(_WRITERS)

    async def one(write: Awaitable[None]) -> None:
        async with gate:
            await write

    wrong = [each for each in await asyncio.gather(*map(one, writes), return_exceptions=True) if each is not None]
    for error in wrong:
        if not isinstance(error, ApiError) or not (error.not_found or error.conflict):
            raise error
