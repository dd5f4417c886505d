"""NodeDevices as the agent writes them: what goes out at once, what waits, what never, and what an outage loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trainyard.agent import published, writer
from trainyard.agent.metrics import Metrics
from trainyard.agent.published import Word
from trainyard.agent.serving import serve
from trainyard.agent.types import Reading, Unreadable
from trainyard.agent.writer import Known, Wanted, Writer, differs, known
from trainyard.api.devices import DeviceStatus, NodeCondition
from trainyard.kube.client import ApiError
from unit.agent.devices import facts

NOW = "2026-11-22T05:00:00Z"


def statuses(**changes: Any) -> list[DeviceStatus]:
    """Two devices; the changes are of the second."""
    return [DeviceStatus(id="Ascend910-0", health="Healthy"),
            DeviceStatus(id="Ascend910-1", health="Healthy").model_copy(update=changes)]


SERVING = Word("True", "Serving")


def wanted(word: Word = SERVING, rack: str = "", **changes: Any) -> Wanted:
    devices = statuses(**changes)
    spec = published.spec("n", "simulated", facts()).model_copy(update={"rack": rack})
    return Wanted(spec, published.status(devices, serve(facts(), devices, {}), word, None, NOW))


class Server:
    """One object behind the part of the API that the writer uses."""

    def __init__(self) -> None:
        self.object: dict[str, Any] | None = None
        self.writes: list[tuple[str, str]] = []
        self.version = 0
        self.down = False

    async def write(self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None,
                    content_type: str = "") -> dict[str, Any]:
        if self.down:
            raise ApiError(0, "Unreachable", "no answer")
        self.writes.append((method, path.rpartition("/")[2]))
        if method == "DELETE":
            self.object = None
            return {}
        if path.endswith("/status"):
            if self.object is None:
                raise ApiError(404, "NotFound", "no such object")
            self.object = {**self.object, "status": body["status"]}
        else:
            orders = (self.object or {}).get("spec", {}).get("orders")
            self.object = {**(self.object or {}), **body, "spec": body["spec"] | ({"orders": orders} if orders else {})}
        self.version += 1
        self.object = {**self.object, "metadata": {"name": "n", "uid": "u", "resourceVersion": str(self.version)}}
        return self.object


@asynccontextmanager
async def writing(server: Server) -> AsyncIterator[Writer]:
    made = Writer(server, "n", Metrics())  # type: ignore[arg-type]
    made.node_uid = "node-uid"
    made.watch.synced.set()
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(writer, "BATCH_SECONDS", 0.4)
    monkeypatch.setattr(writer, "_FIRST_BACKOFF", 0.05)
    return Server()


def status(server: Server) -> dict[str, Any]:
    return dict((server.object or {}).get("status") or {})


async def test_health_goes_out_at_once_and_holders_together_a_little_later(server: Server) -> None:
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        assert server.writes == [("PATCH", "n"), ("PATCH", "status")]
        owners = (server.object or {})["metadata"]
        assert owners["name"] == "n"
        for pod in ("ns/a", "ns/b", "ns/c"):
            made.offer(wanted(pod=pod))
            await asyncio.sleep(0.05)
        assert len(server.writes) == 2, "holders wait for more of their kind"
        await until(lambda: len(server.writes) == 3)
        assert status(server)["devices"][1]["pod"] == "ns/c"
        assert status(server)["free"] == "1"
        made.offer(wanted(pod="ns/d"))
        made.offer(wanted(pod="ns/d", health="Unhealthy", code="X", level="SeparateNPU"))
        await until(lambda: status(server)["devices"][1]["health"] == "Unhealthy")
        assert len(server.writes) == 4


async def test_what_has_not_changed_is_not_written(server: Server) -> None:
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        made.offer(wanted())
        made.offer(wanted(pod="ns/a"))
        made.offer(wanted())
        await asyncio.sleep(0.6)
        assert len(server.writes) == 2


async def test_after_an_outage_the_newest_state_is_written(server: Server) -> None:
    async with writing(server) as made:
        server.down = True
        made.offer(wanted())
        made.offer(wanted(health="Unhealthy", code="X"))
        await asyncio.sleep(0.2)
        made.offer(wanted(code="Y", health="Unhealthy"))
        server.down = False
        await until(lambda: status(server))
        assert status(server)["devices"][1]["code"] == "Y"
        assert len(server.writes) == 2


async def test_orders_are_never_touched(server: Server) -> None:
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        order = {"device": "Ascend910-1", "action": "Quarantine", "by": "Administrator", "at": NOW}
        assert server.object is not None
        server.object["spec"]["orders"] = [order]
        server.version += 1
        server.object["metadata"]["resourceVersion"] = str(server.version)
        made.store.put(server.object)
        assert made.current is not None
        assert made.current.orders[0].device == "Ascend910-1"
        made.offer(wanted(rack="r-2"))
        await until(lambda: (server.object or {})["spec"]["rack"] == "r-2")
        assert server.object["spec"]["orders"] == [order]


async def test_it_is_made_again_when_somebody_deletes_it(server: Server) -> None:
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        server.object = None
        made.store.forget("n")
        await until(lambda: status(server))


async def test_a_status_without_its_object_begins_with_the_object(server: Server) -> None:
    """Deleted, and the watch has not said so yet."""
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        server.object = None
        made.offer(wanted(health="Unhealthy"))
        await until(lambda: status(server))


async def test_without_devices_there_is_no_object(server: Server) -> None:
    async with writing(server) as made:
        made.offer(wanted())
        await until(lambda: status(server))
        made.offer(None)
        await until(lambda: server.object is None)


async def test_a_field_that_the_server_drops_is_not_written_for_ever(server: Server) -> None:
    """As with CRDs that are older than the agent."""
    async with writing(server) as made:
        made.store._project = lambda raw, old: _without(known(raw))
        made.offer(wanted())
        await until(lambda: status(server))
        await asyncio.sleep(0.3)
        assert len(server.writes) == 2


def _without(made: Known | None) -> Known | None:
    if made is None:
        return None
    return Known(made.uid, made.spec, {**made.status, "free": "dropped", "healthy": "x"}, made.orders, made.devices,
                 made.ready)


def test_what_differs() -> None:
    state = wanted()
    raw = {"metadata": {"uid": "u"}, "spec": state.spec.dump(), "status": state.status.dump()}
    there = known(raw)
    assert differs(state, there) == (False, False)
    assert differs(wanted(pod="ns/p"), there) == (False, True)
    assert differs(wanted(code="X"), there) == (True, True)
    assert differs(wanted(Word("False", "HealthUnreadable")), there) == (True, True)
    assert differs(wanted(rack="r"), there) == (True, False)
    assert differs(state, None) == (True, False)
    assert differs(None, there) == (True, False)
    assert differs(None, None) == (False, False)


@pytest.mark.parametrize(("reading", "unregistered", "warning", "said"), [
    (Reading(facts()), "", None, ("True", "Serving")),
    (Reading(facts()), "no kubelet", None, ("False", "Unregistered")),
    (Unreadable("ToolMissing", "no npu-smi"), "", None, ("False", "ToolMissing")),
    (Reading(facts(), unknown=frozenset({"Ascend910-0"})), "", None, ("True", "HealthUnreadable")),
    (Reading(facts(), unknown=frozenset({"Ascend910-0", "Ascend910-1"})), "", None, ("False", "HealthUnreadable")),
    (Reading(facts(), warning=Unreadable("InvalidDevices", "x")), "", None, ("True", "InvalidDevices")),
    (Reading(facts()), "", Unreadable("InvalidFaultTable", "x"), ("True", "InvalidFaultTable")),
])
def test_the_condition(reading: Reading | Unreadable, unregistered: str, warning: Unreadable | None,
                       said: tuple[str, str]) -> None:
    word = published.word(reading, "simulated", unregistered, warning)
    assert (word.status, word.reason) == said


def test_the_summary() -> None:
    known_facts = facts(8)
    devices = [DeviceStatus(id=f"Ascend910-{number}", health="Healthy") for number in range(8)]
    devices[1] = devices[1].model_copy(update={"level": "SubHealthFault", "code": "A"})
    devices[2] = devices[2].model_copy(update={"health": "Unhealthy", "level": "SeparateNPU", "code": "B"})
    devices[5] = devices[5].model_copy(update={"pod": "ns/p"})
    before = NodeCondition(type="Ready", status="True", reason="Serving", last_transition_time="2026-01-01T00:00:00Z")
    made = published.status(devices, serve(known_facts, devices, {}), Word("True", "Serving"), before, NOW)
    assert (made.healthy, made.free, made.worst) == ("7/8", "3+3", "Ascend910-2 SeparateNPU B")
    assert made.conditions[0].last_transition_time == "2026-01-01T00:00:00Z"
    changed = published.status(devices, {}, Word("False", "Unregistered"), before, NOW)
    assert changed.conditions[0].last_transition_time == NOW
    assert published.facts(published.spec("n", "simulated", known_facts)) == known_facts
