"""Whether devices or a job are to blame: one job that sees the same fault on device after device is."""

from __future__ import annotations

from collections.abc import Iterable

from trainyard.api.job import DeviceFault

BLAME_DEVICES = 3  # the same code on so many devices within BLAME_SECONDS counts against the job
BLAME_SECONDS = 24 * 3600.0


def codes_to_blame(known: Iterable[DeviceFault]) -> frozenset[str]:
    """Codes that a job has raised on BLAME_DEVICES different devices, of what its status keeps."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for fault in known:
        seen.setdefault(fault.code, set()).add((fault.node, fault.device))
    return frozenset(code for code, places in seen.items() if len(places) >= BLAME_DEVICES)
