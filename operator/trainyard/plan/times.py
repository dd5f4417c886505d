"""Times as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime

from trainyard.api.times import moment, stamp

__all__ = ["fine_stamp", "milliseconds_between", "moment", "seconds_between", "stamp"]


def fine_stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, for what durations are computed from."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_between(start: datetime, end: datetime) -> float:
    """Seconds from start to end; negative when the end comes first."""
    return (end - start).total_seconds()


def milliseconds_between(start: datetime, end: datetime) -> int:
    """Whole milliseconds from start to end, 0 when clocks disagree about the order."""
    return max(0, round(seconds_between(start, end) * 1000))
