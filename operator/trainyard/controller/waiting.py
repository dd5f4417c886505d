"""Jobs that wait for places: who is before whom, and whose turn it is when capacity comes free."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from datetime import datetime

from trainyard.controller.queue import WorkQueue
from trainyard.plan.types import Waiting

_SETTLE_SECONDS = 0.05  # a gang ends pod by pod: look once, not once a pod
_TURN_SECONDS = 10.0  # one that takes longer (an API server that hangs) does not hold up the others' turn

Order = tuple[int, datetime, str]


class Waitlist:
    """Order: higher priority first, then who has waited longer."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._jobs: dict[str, Waiting] = {}
        self._order: list[Order] = []
        self._wanted: dict[str, str] = {}  # a job that gives up its places, and for which
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def note(self, key: str, waiting: Waiting | None) -> None:
        """What the newest plan of this job said."""
        if waiting == self._jobs.get(key):
            return
        if old := self._jobs.pop(key, None):
            del self._order[bisect.bisect_left(self._order, _order(key, old.priority, old.since))]
            for other in old.preempts:
                if self._wanted.get(other) == key:
                    del self._wanted[other]
            if waiting is None:
                self._changed.set()  # it is out of the way of those behind it
        if waiting is not None:
            self._jobs[key] = waiting
            self._wanted |= dict.fromkeys(waiting.preempts, key)
            for other in waiting.preempts:
                self._queue.add(other)
            bisect.insort(self._order, _order(key, waiting.priority, waiting.since))

    def ahead(self, key: str, priority: int, since: datetime) -> tuple[Waiting, ...]:
        """The waiting jobs before this one, in order. `since` counts if it does not wait yet."""
        if known := self._jobs.get(key):
            priority, since = known.priority, known.since
        end = bisect.bisect_left(self._order, _order(key, priority, since))
        return tuple(self._jobs[name] for _, _, name in self._order[:end])

    def preemptor(self, key: str) -> Waiting | None:
        """The waiting job that this one gives up its places for."""
        return self._jobs.get(self._wanted.get(key, ""))

    def clear(self) -> None:
        """Forget all jobs; those that still wait are noted again when they are planned."""
        self._jobs.clear()
        self._wanted.clear()
        self._order.clear()

    def capacity(self) -> None:
        """Some place may have come free."""
        if self._jobs:
            self._changed.set()

    async def run(self) -> None:
        """After each change of capacity give every waiting job its turn, one after the other, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._changed.clear()
            for _, _, key in list(self._order):
                if key in self._jobs:
                    done = self._queue.done(key)
                    self._queue.add(key)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(done, _TURN_SECONDS)


def _order(key: str, priority: int, since: datetime) -> Order:
    return (-priority, since, key)
