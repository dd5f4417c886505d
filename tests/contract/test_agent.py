"""The agent's process with its own token: what it writes, what it remembers, what an outage does to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chart.helm import NAMESPACE as SYSTEM
from contract.agent_process import AgentProcess, Site, run_agent
from contract.apiserver import ApiServer
from contract.rest import GROUP, Rest
from unit.agent.registry import Kubelet

_numbers = itertools.count()
HEALTHY = {f"Ascend910-{number}": "Healthy" for number in range(8)}


@pytest.fixture(scope="module")
def admin(installed: ApiServer) -> Iterator[Rest]:
    with Rest(installed.kubeconfig) as rest:
        yield rest


@pytest.fixture
def site(installed: ApiServer, admin: Rest, tmp_path: Path) -> Site:
    """A node with eight devices, and the token of the agent's pod there."""
    node = f"site-{next(_numbers)}"
    make_node(admin, node)
    made = admin.create(f"/api/v1/namespaces/{SYSTEM}/pods", {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"agent-{node}"},
        "spec": {"serviceAccountName": "trainyard-agent", "nodeName": node,
                 "containers": [{"name": "agent", "image": "none"}]}})
    assert made.ok, str(made)
    site = Site(node, installed.service_account(SYSTEM, "trainyard-agent", f"agent-{node}"), tmp_path)
    site.prepare()
    return site


def make_node(admin: Rest, name: str) -> str:
    made = admin.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": name, "labels": {"huawei.com/topotree.superpodid": "sp-7"}}})
    assert made.ok, str(made)
    return str(made.body["metadata"]["uid"])


@pytest_asyncio.fixture
async def kubelet(site: Site) -> AsyncIterator[Kubelet]:
    made = Kubelet(site.plugins)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def agents() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def start(agents: ExitStack, site: Site) -> AgentProcess:
    return await asyncio.to_thread(agents.enter_context, run_agent(site))


async def until(what: str, holds: Callable[[], Any], seconds: float = 30) -> Any:
    """Without standing in the way of the kubelet that this process plays."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while not (last := await asyncio.to_thread(holds)):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:.0f} s: {what}; last answer: {last!r}") from None
    return last


class Told:
    """What NodeDevices say."""

    def __init__(self, admin: Rest, node: str) -> None:
        self.admin, self.node = admin, node

    def body(self) -> dict[str, Any]:
        answer = self.admin.get(f"{GROUP}/nodedevices/{self.node}")
        return answer.body if answer.ok else {}

    def device(self, number: int) -> dict[str, Any]:
        devices = self.body().get("status", {}).get("devices") or ()
        return dict(devices[number]) if len(devices) > number else {}

    def ready(self) -> tuple[str, str]:
        conditions = self.body().get("status", {}).get("conditions") or ({"status": "", "reason": ""},)
        return conditions[0]["status"], conditions[0]["reason"]


@pytest.fixture
def told(admin: Rest, site: Site) -> Told:
    return Told(admin, site.node)


async def test_a_life_with_an_outage_and_an_end(installed: ApiServer, site: Site, told: Told, kubelet: Kubelet,
                                                agents: ExitStack) -> None:
    agent = await start(agents, site)
    await until("kubelet lists them", lambda: kubelet.newest == HEALTHY)
    await until("it is served", lambda: told.ready() == ("True", "Serving"))
    assert (told.body()["spec"]["superPod"], told.body()["status"]["free"]) == ("sp-7", "4+4")
    await until("the agent is Ready", lambda: agent.ready()[0] == 200)

    installed.pause()
    try:
        site.describe(faults={"Ascend910-3": ["80E01801"]})
        await until("kubelet hears of a fault", lambda: kubelet.newest.get("Ascend910-3") == "Unhealthy")
        site.describe(faults={"Ascend910-5": ["80E01801"]})
        await until("and of the next", lambda: kubelet.newest == HEALTHY | {"Ascend910-5": "Unhealthy"})
    finally:
        installed.resume()
    await until("the newest state is written", lambda: told.device(5).get("code") == "80E01801")
    assert told.device(3)["health"] == "Healthy"
    assert told.device(3)["faults"] == 1, "what happened meanwhile is not forgotten"

    assert await asyncio.to_thread(agent.stop) == 0
    assert not (site.plugins / "trainyard.sock").exists()


async def test_an_agent_that_cannot_read_knows_the_devices_from_before(site: Site, told: Told, kubelet: Kubelet,
                                                                       agents: ExitStack) -> None:
    first = await start(agents, site)
    site.describe(faults={"Ascend910-1": ["80E01801"]})
    await until("a fault is written", lambda: told.device(1).get("code"))
    site.describe(faults=None)
    await until("its end is written", lambda: told.device(1).get("health") == "Healthy")
    assert await asyncio.to_thread(first.stop) == 0
    kubelet.lists.clear()

    site.describe(unreadable="the tool hangs")
    second = await start(agents, site)
    await until("it says so", lambda: told.ready() == ("False", "HealthUnreadable"))
    await until("nobody gets any", lambda: set(kubelet.newest.values()) == {"Unhealthy"})
    assert len(kubelet.newest) == 8
    assert told.device(0)["health"] == "Unknown"
    status, text = await asyncio.to_thread(second.ready)
    assert (status, "the tool hangs" in text) == (503, True)
    site.describe(unreadable=None)
    await until("it is served again", lambda: told.ready() == ("True", "Serving"))
    await until("to kubelet, too", lambda: kubelet.newest == HEALTHY)
    assert told.device(1)["faults"] == 1


async def test_what_was_written_before_outlives_a_start_without_an_api_server(
        installed: ApiServer, site: Site, told: Told, kubelet: Kubelet, agents: ExitStack) -> None:
    first = await start(agents, site)
    site.describe(faults={"Ascend910-1": ["80E01801"]})
    await until("a fault is written", lambda: told.device(1).get("code"))
    site.describe(faults=None)
    await until("its end is written", lambda: told.device(1).get("health") == "Healthy")
    assert await asyncio.to_thread(first.stop) == 0
    kubelet.lists.clear()
    installed.pause()
    try:
        await start(agents, site)
        await until("the devices are served", lambda: kubelet.newest == HEALTHY)
    finally:
        installed.resume()
    site.describe(faults={"Ascend910-2": ["80E01801"]})
    await until("the next fault is written", lambda: told.device(2).get("code"))
    assert told.device(1)["faults"] == 1


async def test_what_was_never_valid_is_said_and_mended(site: Site, told: Told, kubelet: Kubelet,
                                                       agents: ExitStack) -> None:
    site.write("nodes: {site: {model: 910C}}")
    await start(agents, site)
    await until("it says so", lambda: told.ready() == ("False", "InvalidDevices"))
    assert "nodes.site.model" in told.body()["status"]["conditions"][0]["message"]
    assert not kubelet.registered
    site.describe()
    await until("it is served", lambda: told.ready() == ("True", "Serving"))


async def test_an_invalid_fault_table_is_named_and_the_last_valid_one_stays(site: Site, told: Told, kubelet: Kubelet,
                                                                            agents: ExitStack) -> None:
    table = site.folder / "faults.yaml"
    table.write_text("codes: {MINE: {level: SubHealthFault, text: ours}}")
    agent = await start(agents, site)
    site.describe(faults={"Ascend910-1": ["MINE"]})
    await until("the table is used", lambda: told.device(1).get("level") == "SubHealthFault")
    for text in ("codes: {MINE: {level: Terrible}}", "codes: [", "\x00\xff"):
        table.write_text(text, encoding="latin-1")
        await until("it is named", lambda: told.ready() == ("True", "InvalidFaultTable"))
        assert (told.device(1)["level"], told.device(1)["text"]) == ("SubHealthFault", "ours")
        assert (await asyncio.to_thread(agent.ready))[0] == 200
    table.unlink()
    await until("so is one that is gone", lambda: "No such file" in
                told.body()["status"]["conditions"][0]["message"])
    table.write_text("codes: {MINE: {level: NotHandleFault}}")
    await until("it is mended", lambda: told.ready() == ("True", "Serving"))
    await until("and used", lambda: told.device(1).get("level") == "NotHandleFault")


async def test_without_devices_there_is_nothing_but_orders(admin: Rest, site: Site, told: Told, kubelet: Kubelet,
                                                           agents: ExitStack) -> None:
    await start(agents, site)
    await until("it is served", lambda: told.ready() == ("True", "Serving"))
    order = {"device": "Ascend910-2", "action": "Quarantine", "by": "Administrator", "at": "2026-01-01T00:00:00Z"}
    path = f"{GROUP}/nodedevices/{site.node}"
    assert admin.patch(path, {"spec": {"orders": [order]}}).ok
    await until("the order is obeyed", lambda: told.device(2).get("quarantined"))
    await until("by kubelet, too", lambda: kubelet.newest == HEALTHY | {"Ascend910-2": "Unhealthy"})
    site.write("nodes: {}")
    await until("the order stays", lambda: told.ready() == ("False", "NoDevices"))
    assert told.body()["spec"]["orders"] == [order]
    assert told.body()["spec"]["devices"] == []
    await until("nothing is served", lambda: not (site.plugins / "trainyard.sock").exists())
    assert admin.patch(path, {"spec": {"orders": None}}).ok
    await until("nothing is left", lambda: not told.body())


async def test_a_node_that_came_again_owns_its_devices(admin: Rest, site: Site, told: Told, kubelet: Kubelet,
                                                       agents: ExitStack) -> None:
    await start(agents, site)
    await until("it is served", lambda: told.ready() == ("True", "Serving"))
    assert admin.request("DELETE", f"/api/v1/nodes/{site.node}").ok
    uid = make_node(admin, site.node)
    assert admin.request("DELETE", f"{GROUP}/nodedevices/{site.node}").ok  # as the garbage collector does
    await until("they are written again", lambda: told.ready() == ("True", "Serving"))
    assert told.body()["metadata"]["ownerReferences"][0]["uid"] == uid
