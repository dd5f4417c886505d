"""What an operator remembers from one time of leading to the next."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from trainyard.controller.metrics import Metrics
from trainyard.controller.operator import Operator
from trainyard.controller.options import parse
from trainyard.controller.snapshot import Memory
from trainyard.kube.client import Client
from trainyard.placement.books import Demand
from trainyard.plan.types import Waiting

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_nothing_is_done_before_the_caches_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics())
    seen: list[str] = []

    async def fresh() -> None:
        seen.append("fresh")

    async def listed(*_: Any) -> None:
        seen.append("jobs")

    async def worked(*_: Any) -> None:
        seen.append("work")

    monkeypatch.setattr(operator.cluster, "fresh", fresh)
    monkeypatch.setattr(operator, "_list_jobs", listed)
    monkeypatch.setattr(operator, "_run_queue", worked)
    leading = asyncio.create_task(operator._lead())
    async with asyncio.timeout(5):
        while "work" not in seen:  # noqa: ASYNC110
            await asyncio.sleep(0)
    leading.cancel()
    assert seen == ["fresh", "jobs", "work"]


async def test_who_waited_then_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was deleted while another operator led must not keep nodes from others for ever."""
    operator = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics())
    led = asyncio.Event()

    async def fresh() -> None:
        pass

    async def listed(*_: Any) -> None:
        operator.waitlist.note("a/gone", Waiting("a/gone", 0, NOW, 2, Demand({"cpu": 1})))
        operator.reconciler._memories["a/gone"] = Memory("u")
        led.set()

    monkeypatch.setattr(operator.cluster, "fresh", fresh)
    monkeypatch.setattr(operator, "_list_jobs", listed)
    leading = asyncio.create_task(operator._lead())
    await led.wait()
    assert operator.cluster.led_since is not None
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert len(operator.waitlist) == 0
    assert operator.waitlist.ahead("a/new", 0, datetime.now(UTC)) == ()
    assert operator.reconciler._memories == {}


async def test_jobs_of_another_controller_are_not_in_the_metric() -> None:
    operator = Operator(parse(["--no-leader-election"]), Client(Configuration()), Metrics())
    for name, managed_by, state in (("a", None, ""), ("b", "trainyard.dev/operator", "Running"),
                                    ("c", "example.com/other", ""), ("d", "example.com/other", "Running")):
        operator.cluster.jobs.put({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"managedBy": managed_by} if managed_by else {}, "status": {"state": state} if state else {}})
    assert operator._gauges()["trainyard_jobs", "TrainingJobs by state.", "state"] == {"Pending": 1, "Running": 1}
