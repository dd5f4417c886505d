"""Who could make room, and who is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.controller.occupants import at_risk
from trainyard.controller.queue import WorkQueue
from trainyard.controller.waiting import Waitlist
from trainyard.kube.views import JobView, priority_class
from trainyard.placement.books import Demand
from trainyard.plan.types import Waiting

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = "2026-01-01T11:00:00Z"  # an hour ago


def waiting(key: str, *preempts: str) -> Waiting:
    return Waiting(key, 9, NOW - timedelta(seconds=1), 2, Demand({"cpu": 1}), preempts=preempts)


@pytest.mark.parametrize(("case", "status", "seconds"), [
    ("nothing done", {"startTime": STARTED}, 0),
    ("half of it saved", {"startTime": STARTED, "progress": {"step": 100}, "checkpoint": {"durableStep": 50}}, 1800),
    ("nothing saved", {"startTime": STARTED, "progress": {"step": 100}}, 3600),
    ("all saved", {"startTime": STARTED, "progress": {"step": 100}, "checkpoint": {"durableStep": 100}}, 0),
    ("never begun", {"progress": {"step": 100}}, 0),
])  # fmt: skip
def test_progress_that_may_be_lost(case: str, status: dict[str, Any], seconds: float) -> None:
    job = JobView("ns", "j", "u", "1", 1, NOW, False, {}, status)
    assert at_risk(job, NOW) == seconds, case


def test_preemption_policy() -> None:
    raw = {"metadata": {"name": "c"}, "value": 5}
    assert priority_class(raw).preempts
    assert priority_class(raw | {"preemptionPolicy": "PreemptLowerPriority"}).preempts
    assert not priority_class(raw | {"preemptionPolicy": "Never"}).preempts


async def test_jobs_that_make_room_are_told_and_let_off() -> None:
    async def idle(key: str) -> float | None:
        return None

    jobs = Waitlist(WorkQueue(idle))
    jobs.note("ns/high", waiting("ns/high", "ns/a", "ns/b"))
    assert (found := jobs.preemptor("ns/a")) is not None
    assert found.key == "ns/high"
    assert jobs.preemptor("ns/c") is None
    jobs.note("ns/high", waiting("ns/high", "ns/b", "ns/c"))
    assert jobs.preemptor("ns/a") is None
    assert jobs.preemptor("ns/c") is not None
    jobs.note("ns/high", None)
    assert jobs.preemptor("ns/c") is None
