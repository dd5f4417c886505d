"""Who is before whom, and one turn after the other."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from trainyard.controller.queue import WorkQueue
from trainyard.controller.snapshot import waiting_since
from trainyard.controller.waiting import Waitlist
from trainyard.kube.views import JobView
from trainyard.placement.books import Demand
from trainyard.plan.types import Waiting

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def waiting(key: str, priority: int = 0, age: int = 0) -> Waiting:
    return Waiting(key, priority, NOW - timedelta(seconds=age), 2, Demand({"cpu": 1}))


async def idle(key: str) -> float | None:
    return None


def test_priority_then_age() -> None:
    jobs = Waitlist(WorkQueue(idle))
    for each in (waiting("young"), waiting("old", age=60), waiting("urgent", priority=9)):
        jobs.note(each.key, each)
    assert [w.key for w in jobs.ahead("young", 0, NOW)] == ["urgent", "old"]
    assert [w.key for w in jobs.ahead("urgent", 9, NOW)] == []
    assert [w.key for w in jobs.ahead("new", 5, NOW + timedelta(seconds=1))] == ["urgent"]
    jobs.note("old", None)
    assert [w.key for w in jobs.ahead("young", 0, NOW)] == ["urgent"]


def test_a_job_that_waits_on_with_another_demand_stays_known_once() -> None:
    jobs = Waitlist(WorkQueue(idle))
    jobs.note("a", waiting("a"))
    jobs.note("a", waiting("a", priority=3))
    jobs.note("a", waiting("a", priority=3))
    assert len(jobs) == 1
    assert [w.priority for w in jobs.ahead("z", 0, NOW)] == [3]


@pytest.mark.parametrize(("verdict", "since"), [
    ("False", "2026-01-02T00:00:00Z"), ("Unknown", "2026-01-02T00:00:00Z"), ("True", "2026-01-01T00:00:00Z")])
def test_a_resumed_job_does_not_pass_those_that_wait(verdict: str, since: str) -> None:
    scheduled = {"type": "Scheduled", "status": verdict, "lastTransitionTime": "2026-01-02T00:00:00Z"}
    job = JobView("a", "j", "u", "1", 1, NOW, False, {}, {"conditions": [scheduled]})
    assert waiting_since(job) == datetime.fromisoformat(since)


async def test_capacity_gives_each_its_turn_in_order_one_at_a_time() -> None:
    turns: list[str] = []
    flying = 0

    async def work(key: str) -> float | None:
        nonlocal flying
        flying += 1
        assert flying == 1
        await asyncio.sleep(0.002)
        flying -= 1
        turns.append(key)
        if key == "second":
            jobs.note(key, None)  # it was placed
        return None

    queue = WorkQueue(work, workers=4)
    jobs = Waitlist(queue)
    for each in (waiting("third"), waiting("second", age=10), waiting("first", priority=1)):
        jobs.note(each.key, each)
    tasks = [asyncio.create_task(queue.run()), asyncio.create_task(jobs.run())]
    for _ in range(50):  # a gang of 50 ends: one look, not 50
        jobs.capacity()
    async with asyncio.timeout(5):
        while len(turns) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    # second went away, so that those left are looked at once more, and then it is quiet.
    assert turns == ["first", "second", "third", "first", "third"]
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nothing_happens_while_nobody_waits() -> None:
    jobs = Waitlist(WorkQueue(idle))
    jobs.capacity()
    assert not jobs._changed.is_set()
