"""Times as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds: the form of metav1.Time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fine_stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, for what durations are computed from."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str | None) -> datetime | None:
    """The time that an RFC 3339 text names; None for nothing or for nonsense (pods write some of these)."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def seconds_between(start: datetime, end: datetime) -> float:
    """Seconds from start to end; negative when the end comes first."""
    return (end - start).total_seconds()


def milliseconds_between(start: datetime, end: datetime) -> int:
    """Whole milliseconds from start to end, 0 when clocks disagree about the order."""
    return max(0, round(seconds_between(start, end) * 1000))
