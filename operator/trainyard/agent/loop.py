"""The agent: readings in, devices for kubelet and NodeDevices out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import grpc
from pydantic import ValidationError

from trainyard.agent import published
from trainyard.agent.health import assess
from trainyard.agent.metrics import Metrics
from trainyard.agent.options import Options
from trainyard.agent.plugin import Plugin
from trainyard.agent.podresources import PodResources
from trainyard.agent.serving import Served, serve
from trainyard.agent.table import OwnTable
from trainyard.agent.types import Backend, Facts, Reading, Unreadable
from trainyard.agent.writer import Wanted, Writer
from trainyard.api.devices import DeviceStatus, NodeDevicesSpec, Order
from trainyard.api.times import stamp
from trainyard.kube.client import ApiError, Client

log = logging.getLogger(__name__)

STALE_SECONDS = 20.0
"""A backend reads again every 5 s, or 15 s if its tools are slow; health that is older than this is unknown."""
_TICK_SECONDS = 1.0  # between two looks at what only time changes: probations, readings that do not come
_HOLDERS_SECONDS = 2.0  # between two looks at who holds what
_HOLDERS_PATIENCE = 1.0
_NODE_SECONDS = 300.0  # between two looks at the Node, for its labels
_NODE_RETRY_SECONDS = 2.0
_HISTORY_SECONDS = 5.0  # how long a start waits for what an agent before this one wrote
_AGAIN_SECONDS = 3.0  # before a backend that failed is begun again
_REGISTER_SECONDS = 5.0  # a kubelet that starts again takes a moment; nobody needs to hear of it


class Agent:
    """What the agent of one node knows, and the tasks that keep it true."""

    def __init__(self, options: Options, backend: Backend, client: Client, metrics: Metrics) -> None:
        self.options = options
        self.backend = backend
        self.plugin = Plugin(options.plugins, options.runtime, metrics, options.hardware)
        self.writer = Writer(client, options.node, metrics)
        self.statuses: tuple[DeviceStatus, ...] = ()
        self.beat = time.monotonic()  # when the loop last went round
        self._client = client
        self._pod_resources = PodResources(options.pod_resources)
        self._facts: Facts | None = None
        self._reading: Reading | Unreadable = Unreadable("HealthUnreadable", "nothing has been read yet")
        self._read_at = 0.0  # monotonic
        self._holders: Mapping[str, str] = {}
        self._doubted = False  # kubelet said a moment ago that nobody holds anything any more
        self._recalled = False  # what an agent before this one wrote is known, or there was nothing
        self._registered_at = time.monotonic()  # when kubelet was last known to know the plugin
        self._table = OwnTable(options.fault_table)
        self._node_read = asyncio.Event()  # set: read the Node again now
        self._news = asyncio.Event()  # set: NodeDevices have changed
        self._orders: tuple[Order, ...] = ()  # that are obeyed
        metrics.devices(lambda: self.statuses)
        self.writer.store.listen(lambda key, old, new: self._heard(old is not None and new is None))

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.writer.watch.run(), name="watch")
            tasks.create_task(self._know_node(), name="node")
            await self._remember()
            await self._take_orders()
            await self._table.look()  # before any reading: a fault that the cluster calls harmless must move nobody
            for name, part in (("readings", self._read()), ("holders", self._follow_holders()), ("tick", self._tick()),
                               ("orders", self._obey()), ("plugin", self.plugin.run()), ("writer", self.writer.run())):
                tasks.create_task(part, name=name)

    # What is known.

    async def _remember(self) -> None:
        """What an agent before this one wrote: faults of the last day, who held what, and the devices themselves, in
        case nothing can be read now. Serving does not wait for an API server that is away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HISTORY_SECONDS):
                await self.writer.watch.synced.wait()
        there = self.writer.current
        self._recalled = self.writer.watch.synced.is_set()
        if there is None:
            return
        self.statuses = there.devices
        self._holders = {each.id: each.pod for each in there.devices if each.pod}
        spec = NodeDevicesSpec.model_validate(there.spec)
        self.backend.recall(spec)
        if spec.backend == self.backend.name and spec.devices:
            self._facts = published.facts(spec)

    async def _read(self) -> None:
        while True:
            try:
                async for reading in self.backend.readings():
                    await self._take(self._usable(reading))
            except Exception as error:  # something that nobody foresaw: health is unknown, and NodeDevices say why
                log.exception("backend %s failed", self.backend.name)
                await self._take(Unreadable("BackendFailed", f"backend {self.backend.name} failed with "
                                            f"{type(error).__name__}: {str(error)[:1000]}. It is tried again; this is "
                                            "a mistake in Trainyard, please report it with the agent's log"))
            await asyncio.sleep(_AGAIN_SECONDS)

    def _usable(self, reading: Reading | Unreadable) -> Reading | Unreadable:
        """The reading, if NodeDevices have room for its facts."""
        if not isinstance(reading, Unreadable):
            try:
                published.spec(self.options.node, self.backend.name, reading.facts)
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:8])
                return Unreadable("InvalidFacts", f"backend {self.backend.name} found devices that NodeDevices cannot "
                                  f"hold: {wrong}"[:4000])
        return reading

    async def _take(self, reading: Reading | Unreadable) -> None:
        bad = isinstance(reading, Unreadable) or bool(reading.unknown)
        if bad and not isinstance(self._reading, Unreadable):
            await self._ask_holders()  # who holds a device decides what kubelet is told of unknown health
        if isinstance(reading, Unreadable):
            if (reading.reason, reading.message) != _said(self._reading):
                log.warning("%s: %s", reading.reason, reading.message)
        else:
            self._facts = reading.facts
            if reading.holders is not None:
                self._holders = reading.holders
        self._reading, self._read_at = reading, time.monotonic()
        self._update()

    async def _follow_holders(self) -> None:
        while True:
            await asyncio.sleep(_HOLDERS_SECONDS)
            if await self._ask_holders():
                self._update()

    async def _ask_holders(self) -> bool:
        """Whether anything has changed. kubelet may be away; what it said last counts."""
        if not isinstance(self._reading, Unreadable) and self._reading.holders is not None:
            return False
        resource = self._facts.resource if self._facts else self.options.resource
        try:
            async with asyncio.timeout(_HOLDERS_PATIENCE):
                holders = await self._pod_resources.holders(resource)
        except (TimeoutError, OSError, grpc.RpcError) as error:
            log.debug("PodResources: %r", error)
            return False
        if not holders and self._holders and not self._doubted:
            self._doubted = True  # a kubelet that has just started has not heard of its pods yet
            return False
        self._doubted = False
        changed = holders != self._holders
        self._holders = holders
        return changed

    async def _tick(self) -> None:
        while True:
            self.beat = time.monotonic()
            await self._table.look()
            self._update()
            await asyncio.sleep(_TICK_SECONDS)

    async def _know_node(self) -> None:
        """The Node's UID, which owns NodeDevices, and its labels."""
        while True:
            self._node_read.clear()
            pause = _NODE_SECONDS
            try:
                metadata = (await self._client.get(f"/api/v1/nodes/{self.options.node}"))["metadata"]
                self.writer.node_uid = metadata["uid"]
                self.backend.learn(metadata.get("labels") or {}, metadata.get("annotations") or {})
                self.writer.wake()
            except ApiError as error:
                log.info("node %s not read, trying again: %s", self.options.node, error)
                pause = _NODE_RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._node_read.wait()

    def _heard(self, deleted: bool) -> None:
        """NodeDevices have changed: there may be new orders. Deleted ones may have gone with a Node that came again
        under the same name, which is another owner."""
        if deleted:
            self.writer.node_uid = ""
            self._node_read.set()
        if self._read_at and not self._recalled and (there := self.writer.current):
            # The API server was away when this agent began, and the writer is about to overwrite what it had kept.
            self._recalled, self.statuses = True, there.devices
            self.backend.recall(NodeDevicesSpec.model_validate(there.spec))
        self._news.set()

    async def _obey(self) -> None:
        """New orders, once it is known who holds the devices just now."""
        while True:
            await self._news.wait()
            self._news.clear()
            if (self.writer.current.orders if self.writer.current else ()) != self._orders:
                await self._take_orders()
            if self._read_at:
                self._update()

    async def _take_orders(self) -> None:
        """A device that nobody holds is quarantined at once: what was heard of holders seconds ago will not do."""
        await self._ask_holders()
        self._orders = self.writer.current.orders if self.writer.current else ()

    # What is said.

    def _update(self) -> None:
        """Tell kubelet and NodeDevices what follows from all that is known now."""
        reading, facts = self._current()
        now = datetime.now(UTC)
        if facts is None:
            if self._read_at:
                self._offer(Facts(self.options.resource, "Other", ()), {}, reading, now)
            return
        there = self.writer.current
        if not facts.devices:
            self.plugin.hide()
            self.statuses = ()
            if there is None or not there.orders:
                self.writer.offer(None)
            else:  # what people ordered outlives a mistake in a description of devices
                self._offer(Facts(there.spec["resource"], "Other", ()), {},
                            Unreadable("NoDevices", "the node has no devices; its NodeDevices are kept for the orders "
                                       "in spec.orders"), now)
            return
        self.statuses = assess(facts, reading, self._orders, self._holders, self._table.table, self.statuses, now)
        if self.backend.name == "observe":
            served = serve(facts, self.statuses, {})
        else:
            self.plugin.show(facts, self.statuses)
            served = self.plugin.told()
        self._offer(facts, served, reading, now)

    def _current(self) -> tuple[Reading | Unreadable, Facts | None]:
        age = time.monotonic() - self._read_at
        if self._read_at and age > STALE_SECONDS and not isinstance(self._reading, Unreadable):
            return Unreadable("HealthUnreadable", f"backend {self.backend.name} has read nothing for {age:.0f} s; "
                              "expected a reading every 5 s"), self._facts
        return self._reading, self._facts

    def _offer(self, facts: Facts, served: Mapping[str, Served], reading: Reading | Unreadable, now: datetime) -> None:
        said = published.word(reading, self.backend.name, self._unregistered(), self._table.wrong)
        there = self.writer.wanted
        before = there.status.conditions[0] if there else None
        if before is None and (stored := self.writer.current):
            before = stored.ready
        statuses = self.statuses if facts.devices else ()
        self.writer.offer(Wanted(published.spec(self.options.node, self.backend.name, facts),
                                 published.status(statuses, served, said, before, stamp(now))))

    def _unregistered(self) -> str:
        """Why kubelet does not know the plugin; empty if it does, or did a moment ago."""
        if self.backend.name == "observe" or self.plugin.registered:
            self._registered_at = time.monotonic()
        if time.monotonic() - self._registered_at < _REGISTER_SECONDS:
            return ""
        return f"kubelet does not know the device plugin: {self.plugin.problem or 'it has not answered yet'}"

    async def not_ready(self) -> list[str]:
        """What keeps this agent from being Ready: its socket does not answer, or health was not read just now."""
        reading, facts = self._current()
        wrong = []
        if isinstance(reading, Unreadable):
            wrong.append(f"{reading.reason}: {reading.message}")
        if facts and facts.devices and self.backend.name != "observe" and (problem := await self.plugin.answers()):
            wrong.append(problem)
        return wrong

    def not_alive(self) -> list[str]:
        """Whether the loop still goes round."""
        age = time.monotonic() - self.beat
        return [f"the agent's loop has stood still for {age:.0f} s"] if age > 30 else []


def _said(reading: Reading | Unreadable) -> tuple[str, str] | None:
    return (reading.reason, reading.message) if isinstance(reading, Unreadable) else None
