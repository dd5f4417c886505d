"""The fleet's decisions carried out: few writes, each with what keeps others' words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.api.devices import DeviceStatus, FaultRecord, Order
from trainyard.api.times import stamp
from trainyard.controller import fleet as fleet_module
from trainyard.controller.cluster import OURS, Cluster
from trainyard.controller.events import Events
from trainyard.controller.fleet import Fleet
from trainyard.controller.metrics import Metrics, device_gauges
from trainyard.kube.client import ApiError, Client, Object
from unit.kube.test_devices import raw_node, ready, told

NOW = datetime.now(UTC)
NODES, DEVICES = "/api/v1/nodes", f"{OURS}/nodedevices"


class Api(Client):
    """Takes patches as the API server would, keeps what was written."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.writes: list[tuple[str, str, Any]] = []
        self.trouble: dict[str, ApiError] = {}
        self.version = 100

    async def write(self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None,
                    content_type: str = "", gated: bool = True, seconds: float | None = None) -> Object:
        self.writes.append((method, path, body))
        if error := self.trouble.pop(path, None):
            raise error
        if method == "POST":
            return {}
        made = self.objects[path.removesuffix("/status")]
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected and expected != made["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "changed")
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)
        if "spec" in body:
            made["spec"] |= body["spec"]
        for condition in body.get("status", {}).get("conditions", ()):
            kept = {each["type"]: each for each in made["status"]["conditions"]}
            if condition.get("$patch") == "delete":
                kept.pop(condition["type"])
            else:
                kept[condition["type"]] = kept.get(condition["type"], {}) | condition
            made["status"]["conditions"] = list(kept.values())
        return made

    def patches(self) -> list[str]:
        """What was written since the last time, events left out."""
        answer = [path for method, path, _ in self.writes if method == "PATCH"]
        self.writes.clear()
        return answer


def failed_again() -> DeviceStatus:
    records = [FaultRecord(code="80E18005", level="RestartNPU", began=stamp(NOW - timedelta(hours=hours)),
                           ended=stamp(NOW - timedelta(hours=hours - 0.5))) for hours in (2, 1)]
    return DeviceStatus(id="d1", health="Healthy", history=records, faults=2)


class Bench:
    """Three nodes of four devices each, and a Fleet on the fake API."""

    def __init__(self, *names: str) -> None:
        self.api = Api()
        self.cluster = Cluster(self.api)
        self.fleet = Fleet(self.api, self.cluster, Events(self.api, "me"), quarantine_seconds=600)
        for name in names or ("n1", "n2", "n3"):
            self.put(f"{NODES}/{name}", raw_node(name))
            self.put(f"{DEVICES}/{name}", told(name=name))

    def put(self, path: str, raw: Object) -> None:
        self.api.version += 1
        raw["metadata"]["resourceVersion"] = str(self.api.version)
        self.api.objects[path] = raw
        (self.cluster.nodes if path.startswith(NODES) else self.cluster.devices).put(raw)

    def events(self) -> list[tuple[str, str]]:
        return [(body["involvedObject"]["kind"], body["reason"]) for method, _, body in self.api.writes
                if method == "POST"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_conditions_are_written_once(bench: Bench) -> None:
    assert await bench.fleet._look() > 1
    assert sorted(bench.api.patches()) == [f"{NODES}/n{i}/status" for i in (1, 2, 3)]
    (condition,) = [c for c in bench.api.objects[f"{NODES}/n1"]["status"]["conditions"] if c["type"] != "Ready"]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "AcceleratorsHealthy", "True", "AllHealthy")
    await bench.fleet._look()
    assert bench.api.writes == []
    since = condition["lastTransitionTime"]
    bench.put(f"{DEVICES}/n1", told(DeviceStatus(id="d1", health="Healthy", level="SubHealthFault", code="1")))
    await bench.fleet._look()
    (condition,) = [c for c in bench.api.objects[f"{NODES}/n1"]["status"]["conditions"] if c["type"] != "Ready"]
    assert (condition["reason"], condition["lastTransitionTime"]) == ("SubHealthy", since)


async def test_a_quarantine_keeps_an_administrators_order() -> None:
    bench = Bench("n1", "n2", "n3")
    theirs = Order(device="d2", action="Quarantine", by="Administrator", at=stamp(NOW), reason="noisy fan")
    bench.put(f"{DEVICES}/n1", told(failed_again(), orders=(theirs,)))
    await bench.fleet._look()
    first, second = bench.api.objects[f"{DEVICES}/n1"]["spec"]["orders"]
    assert first == theirs.dump()
    assert (second["device"], second["action"], second["by"]) == ("d1", "Quarantine", "Operator")
    assert ("NodeDevices", "Quarantined") in bench.events()
    kept = bench.cluster.devices.get("n1")
    assert kept is not None
    device = kept.device("d1")
    assert device is not None
    assert not device.usable, "placement knows at once"
    bench.api.patches()
    await bench.fleet._look()
    assert bench.api.patches() == [f"{NODES}/n1/status"]
    await bench.fleet._look()
    assert bench.api.writes == []


async def test_an_order_that_was_given_meanwhile_is_not_lost(bench: Bench) -> None:
    await bench.fleet._look()
    bench.put(f"{DEVICES}/n1", told(failed_again()))
    bench.api.objects[f"{DEVICES}/n1"] = told(failed_again(), version=9999)
    bench.api.patches()
    await bench.fleet._look()
    assert bench.api.patches() == [f"{DEVICES}/n1"]
    assert not bench.api.objects[f"{DEVICES}/n1"]["spec"].get("orders"), "refused; what changed it will be heard of"


@pytest.mark.parametrize("status", [404, 409, 500])
async def test_one_node_that_cannot_be_written_keeps_no_other_back(bench: Bench, status: int) -> None:
    bench.api.trouble[f"{NODES}/n1/status"] = ApiError(status, "Trouble", "no")
    with contextlib.suppress(ApiError) if status == 500 else contextlib.nullcontext():
        await bench.fleet._look()
    assert len(bench.api.patches()) == 3
    await bench.fleet._look()
    assert bench.api.patches() == [f"{NODES}/n1/status"]


async def test_a_standing_warning_is_announced_once(bench: Bench) -> None:
    bench.put(f"{DEVICES}/n1", told(on=ready(reason="InvalidFaultTable")))
    await bench.fleet._look()
    assert ("NodeDevices", "InvalidFaultTable") in bench.events()
    bench.api.writes.clear()
    await bench.fleet._look()
    assert bench.events() == []


async def test_a_cluster_scoped_object_has_its_events_in_default(bench: Bench) -> None:
    bench.put(f"{DEVICES}/n1", told(on=ready(reason="InvalidDevices")))
    await bench.fleet._look()
    (event,) = [body for method, path, body in bench.api.writes if method == "POST"]
    assert event["metadata"]["namespace"] == "default"
    assert "namespace" not in event["involvedObject"]
    assert (event["involvedObject"]["kind"], event["involvedObject"]["uid"]) == ("NodeDevices", "u-n1")


def blaming(name: str, code: str = "80E18005", at: datetime = NOW) -> Object:
    """A job that has raised one code on three devices."""
    faults = [{"node": f"n{i}", "device": "d1", "code": code, "at": stamp(at)} for i in (1, 2, 3)]
    return {"metadata": {"name": name, "namespace": "a", "uid": f"u-{name}", "resourceVersion": "7",
                         "creationTimestamp": stamp(NOW)}, "spec": {}, "status": {"deviceFaults": faults}}


async def test_what_a_job_is_to_blame_for_quarantines_nothing_even_once_it_is_gone(bench: Bench) -> None:
    bench.cluster.jobs.put(blaming("j"))
    bench.put(f"{DEVICES}/n1", told(failed_again()))
    await bench.fleet._look()
    assert not bench.api.objects[f"{DEVICES}/n1"]["spec"].get("orders")
    bench.cluster.jobs.drop("a/j", 8)
    await bench.fleet._look()
    assert not bench.api.objects[f"{DEVICES}/n1"]["spec"].get("orders")


async def test_blame_ends_a_day_later_however_long_the_job_is_kept(bench: Bench) -> None:
    bench.cluster.jobs.put(blaming("ended", at=NOW - timedelta(hours=25)))
    bench.put(f"{DEVICES}/n1", told(failed_again()))
    await bench.fleet._look()
    assert bench.api.objects[f"{DEVICES}/n1"]["spec"]["orders"]


async def test_a_job_with_device_faults_wakes_the_fleet(bench: Bench) -> None:
    looks: list[int] = []
    bench.cluster.fleet = lambda: looks.append(1)
    bench.cluster.jobs.put(blaming("j"))
    assert looks == [1]
    again = blaming("j")
    again["metadata"]["resourceVersion"] = "8"
    again["status"]["state"] = "Running"
    bench.cluster.jobs.put(again)
    assert looks == [1]


async def test_it_looks_when_something_changes_and_survives_a_mistake(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(fleet_module, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(fleet_module, "_RETRY_SECONDS", 0.0)
    looks, looked = 0, asyncio.Event()

    async def look() -> float:
        nonlocal looks
        looks += 1
        looked.set()
        if looks == 1:
            raise RuntimeError("a mistake")
        return 60.0

    monkeypatch.setattr(bench.fleet, "_look", look)
    running = asyncio.create_task(bench.fleet.run())
    async with asyncio.timeout(5):
        while looks < 2:
            looked.clear()
            await looked.wait()
        looked.clear()
        bench.fleet.notice()
        await looked.wait()
    running.cancel()
    assert looks == 3


def test_metrics_name_only_devices_that_something_is_wrong_with(bench: Bench) -> None:
    bench.put(f"{DEVICES}/n1", told(
        DeviceStatus(id="d1", health="Unhealthy", level="RestartNPU", code="80E18005"), failed_again().model_copy(
            update={"id": "d2"}), DeviceStatus(id="d3", health="Healthy", pod="a/x")))
    metrics = Metrics()
    metrics.gauges(lambda: device_gauges((each for _, each in bench.cluster.devices), ()))
    text = metrics.render().decode()
    pool = 'model="910A",resource="huawei.com/Ascend910"'
    assert f'trainyard_devices{{{pool},state="free"}} 10.0' in text
    assert f'trainyard_devices{{{pool},state="in-use"}} 1.0' in text
    assert f'trainyard_devices{{{pool},state="unhealthy"}} 1.0' in text
    assert 'trainyard_device_fault{code="80E18005",device="d1",level="RestartNPU",node="n1"} 1.0' in text
    assert text.count("trainyard_device_fault{") == 1
    assert 'trainyard_device_failures{device="d2",node="n1"} 2.0' in text


def test_what_kubelet_offers_is_a_reason_to_look() -> None:
    """The condition of a node speaks of it: the node's word may come long after the agent's."""
    bench = Bench("n1")
    looked: list[int] = []
    bench.cluster.fleet = lambda: looked.append(1)
    for count, after in (("0", 1), ("0", 1), ("4", 2)):
        raw = raw_node("n1")
        raw["status"]["allocatable"]["huawei.com/Ascend910"] = count
        bench.put(f"{NODES}/n1", raw)
        assert len(looked) == after, count
