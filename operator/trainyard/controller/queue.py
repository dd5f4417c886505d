"""Keys to be worked on: one in flight a key, coalesced, with delays and a bounded backoff after errors."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from trainyard.controller import logs
from trainyard.kube.client import ApiError, NotLeading

log = logging.getLogger(__name__)

_FIRST_BACKOFF, _LAST_BACKOFF = 1.0, 60.0  # seconds, before jitter


class Conflict(Exception):
    """What was planned no longer fits what is; look again soon. Nothing is wrong."""


class NotYet(Exception):
    """Something outside has to happen first, such as the garbage collector's work; try again with backoff. Nothing is
    wrong."""


class WorkQueue:
    """Calls `work(key)` for every key that was added; it returns the seconds after which it wants the key again.

    A key that is added while in flight comes again afterwards. After an error the key rests, whatever is added
    meanwhile, 1 s at first and doubling up to 60 s, jittered; after a Conflict a moment only.
    """

    def __init__(self, work: Callable[[str], Awaitable[float | None]], *, workers: int = 8) -> None:
        self._work = work
        self._workers = workers
        self._ready: deque[str] = deque()
        self._dirty: set[str] = set()  # added and not yet begun
        self._flying: dict[str, float] = {}  # since when, monotonic
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._rests: dict[str, float] = {}  # until when, loop time
        self._failures: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._paused = False
        self._taken = time.monotonic()  # when a worker last took a key
        self._idle: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys that wait for a time."""
        return len(self._timers)

    @property
    def flying(self) -> int:
        """Keys being worked on."""
        return len(self._flying)

    @property
    def longest(self) -> tuple[float, str]:
        """Seconds in flight and key of the one that takes longest; (0, "") if none is in flight."""
        if not self._flying:
            return 0.0, ""
        key = min(self._flying, key=lambda each: self._flying[each])
        return time.monotonic() - self._flying[key], key

    def clear(self) -> None:
        """Forget all keys, delays and failures; only while it does not run."""
        for timer in self._timers.values():
            timer.cancel()
        for kept in (self._timers, self._rests, self._failures, self._dirty, self._ready):
            kept.clear()

    def pause(self) -> None:
        """Take no further key; what is in flight goes on."""
        self._paused = True

    def stalled(self, seconds: float) -> bool:
        """Whether keys have waited that long without any being taken."""
        return bool(self._ready) and not self._paused and time.monotonic() - self._taken > seconds

    def add(self, key: str) -> None:
        """Work on it as soon as possible (after its rest, if it has failed)."""
        left = self._rests.get(key, 0.0) - asyncio.get_running_loop().time()
        if left > 0:
            self.add_after(key, left)
            return
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._flying:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Work on it once `seconds` are over, or earlier if it was to come earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if timer := self._timers.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def add_soon(self, key: str, seconds: float) -> None:
        """As add, but `seconds` later at the soonest: whatever happens until then is answered by one run."""
        left = self._rests.get(key, 0.0) - asyncio.get_running_loop().time()
        if key not in self._dirty:
            self.add_after(key, max(seconds, left))

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self._rests.pop(key, None)
        self.add(key)

    def done(self, key: str) -> asyncio.Future[None]:
        """A future that is set when the next run of this key has ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.setdefault(key, []).append(future)
        return future

    async def run(self) -> None:
        """Work until cancelled; may be called again after that."""
        self._paused = False
        self._taken = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            while self._paused or not self._ready:
                self._wake.clear()
                await self._wake.wait()
            key = self._ready.popleft()
            self._taken = time.monotonic()
            self._dirty.discard(key)
            if timer := self._timers.pop(key, None):
                timer.cancel()
            self._flying[key] = time.monotonic()
            try:
                await self._one(key)
            finally:
                del self._flying[key]
                if key in self._dirty:
                    self._ready.append(key)
                    self._wake.set()
                for future in self._idle.pop(key, ()):
                    if not future.done():
                        future.set_result(None)

    async def _one(self, key: str) -> None:
        token = logs.job.set(key)
        try:
            again = await self._work(key)
        except Conflict as conflict:
            log.info("looking again: %s", conflict)
            self._rest(key, random.uniform(0.05, 0.25))
        except NotLeading as refused:
            log.info("%s", refused)
            self._rest(key, 1.0)
        except Exception as error:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            pause = min(_FIRST_BACKOFF * 2 ** min(count - 1, 10), _LAST_BACKOFF) * random.uniform(0.7, 1.0)
            if isinstance(error, ApiError) and error.retry_after:
                pause = max(pause, min(error.retry_after, _LAST_BACKOFF))
            log.log(logging.INFO if isinstance(error, NotYet) else logging.ERROR,
                    "reconcile failed %d times in a row, again in %.1f s: %s: %s", count, pause,
                    type(error).__name__, error, exc_info=not _expected(error))
            self._rest(key, pause)
        else:
            self._failures.pop(key, None)
            if again is not None:
                self.add_after(key, max(again, 0.0))
        finally:
            logs.job.reset(token)

    def _rest(self, key: str, seconds: float) -> None:
        self._rests[key] = asyncio.get_running_loop().time() + seconds
        if key in self._dirty:  # what came in meanwhile waits as well
            self._dirty.discard(key)
        self.add_after(key, seconds)


def _expected(error: BaseException) -> bool:
    """Whether the message says it all; a traceback is for mistakes of ours."""
    return isinstance(error, ApiError | TimeoutError | NotYet)
