"""One in flight a key, coalesced, rested after errors."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from trainyard.controller import queue as module
from trainyard.controller.queue import Conflict, WorkQueue


@asynccontextmanager
async def running(work: Callable[[str], Awaitable[float | None]], workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, workers=workers)
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    try:
        yield queue
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def settled(queue: WorkQueue) -> None:
    async with asyncio.timeout(5):
        while queue.depth or queue.flying:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_key_is_never_worked_on_twice_at_a_time() -> None:
    flying: Counter[str] = Counter()
    runs: Counter[str] = Counter()

    async def work(key: str) -> float | None:
        flying[key] += 1
        assert flying[key] == 1
        await asyncio.sleep(0.001)
        flying[key] -= 1
        runs[key] += 1
        return None

    async with running(work) as queue:
        for _ in range(20):
            for key in "abc":
                queue.add(key)
        await settled(queue)
        assert runs == {"a": 1, "b": 1, "c": 1}
        queue.add("a")
        await asyncio.sleep(0)  # a worker has it now
        for _ in range(20):
            queue.add("a")
        await settled(queue)
        assert runs["a"] == 3


async def test_what_is_added_in_flight_comes_again_afterwards() -> None:
    seen: list[int] = []
    state = 0
    begun = asyncio.Event()

    async def work(key: str) -> float | None:
        seen.append(state)
        begun.set()
        await asyncio.sleep(0.01)
        return None

    async with running(work) as queue:
        queue.add("a")
        await begun.wait()
        state = 1
        queue.add("a")
        await settled(queue)
    assert seen == [0, 1]


async def test_an_error_rests_the_key_whatever_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF", 0.05)
    runs: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(key: str) -> float | None:
        runs.append(loop.time())
        if len(runs) < 3:
            raise RuntimeError("no")
        return None

    async with running(work) as queue:
        queue.add("a")
        while len(runs) < 3:
            queue.add("a")
            await asyncio.sleep(0.001)
        queue.add("a")
        await asyncio.sleep(0.05)
    gaps = [later - earlier for earlier, later in pairwise(runs)]
    assert gaps[0] >= 0.05 * 0.7 - 0.01
    assert gaps[1] >= 0.1 * 0.7 - 0.01
    assert len(runs) == 4, "after a success there is no rest"


async def test_backoff_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(module, "_LAST_BACKOFF", 0.004)
    runs = 0

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        raise RuntimeError("never")

    async with running(work) as queue:
        queue.add("a")
        await asyncio.sleep(0.3)
    assert runs > 15


async def test_a_conflict_is_looked_at_again_soon_and_is_no_failure() -> None:
    runs = 0

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise Conflict("changed")
        return None

    async with running(work) as queue:
        queue.add("a")
        async with asyncio.timeout(3):
            while runs < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not queue._failures


async def test_it_comes_again_when_the_work_says_so_and_earlier_if_something_happens() -> None:
    runs: defaultdict[str, int] = defaultdict(int)

    async def work(key: str) -> float | None:
        runs[key] += 1
        return 0.02 if key == "soon" and runs[key] < 3 else (1000 if key == "late" else None)

    async with running(work) as queue:
        queue.add("soon")
        queue.add("late")
        await asyncio.sleep(0.2)
        assert runs == {"soon": 3, "late": 1}
        assert queue.delayed == 1
        queue.add("late")
        await settled(queue)
        assert runs["late"] == 2


async def test_a_worker_that_is_stuck_shows() -> None:
    async def work(key: str) -> float | None:
        await asyncio.sleep(3600)
        return None

    async with running(work, workers=1) as queue:
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(0.05)
        seconds, key = queue.longest
        assert key == "a"
        assert seconds >= 0.04
        assert queue.depth == 1
        assert queue.stalled(0.01)
        assert not queue.stalled(10)


async def test_it_can_be_run_again_after_it_was_cancelled() -> None:
    runs = 0

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await asyncio.sleep(3600)
        return None

    queue = WorkQueue(work, workers=2)
    first = asyncio.create_task(queue.run())
    queue.add("a")
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert queue.flying == 0
    second = asyncio.create_task(queue.run())
    queue.add("a")
    await asyncio.sleep(0.05)
    assert runs == 2
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_paused_it_takes_no_further_key() -> None:
    runs = 0

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        return None

    async with running(work) as queue:
        queue.pause()
        queue.add("a")
        await asyncio.sleep(0.02)
        assert runs == 0
