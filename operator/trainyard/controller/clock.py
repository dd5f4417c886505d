"""The wall clock of this machine, which may be set while durations are measured by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

LEAST_SECONDS = 2.0  # what is less is slewing, or two clocks that were not read at the same moment


def _wall() -> datetime:
    return datetime.now(UTC)


class WallClock:
    """Compares it with a clock that nobody can set, and that stands still while the machine sleeps."""

    def __init__(self, wall: Callable[[], datetime] = _wall, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._before = wall(), steady()

    def look(self) -> tuple[datetime, timedelta]:
        """Now, and by how much the clock was set since the last look; 0 if it was not."""
        (wall, steady), now = self._before, (self._wall(), self._steady())
        self._before = now
        by = now[0] - wall - timedelta(seconds=now[1] - steady)
        return now[0], by if abs(by.total_seconds()) > LEAST_SECONDS else timedelta()


def set_right(at: datetime, by: timedelta, now: datetime) -> datetime:
    """A moment that was read from the clock before it was set: as it is told since."""
    if by < timedelta() and at <= now:
        return at  # read after it was set, or so long ago that nobody waits for it any more
    return min(at + by, now)
