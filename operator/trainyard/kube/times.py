"""Times as the API writes them."""

from __future__ import annotations

from datetime import datetime


def instant(text: str | None) -> datetime | None:
    """A Kubernetes time, or None. Raises ValueError for what is none."""
    return datetime.fromisoformat(text) if text else None
