"""Processes of pods, as the host of a built-in cluster sees them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from supervisor import pulse


def of_pod(uid: str) -> Iterator[int]:
    """Pids of all processes of a pod."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and f"pod{uid}" in _read(f"/proc/{entry}/cgroup"):
            yield int(entry)


def rank(uid: str, number: int) -> int:
    """Pid of a rank in a pod: a named fork, or a program with its environment.

    Raises LookupError if it does not run."""
    for pid in of_pod(uid):
        if _read(f"/proc/{pid}/comm").strip() == f"rank {number}":
            return pid
        if f"RANK={number}" in _read(f"/proc/{pid}/environ").split("\0"):
            return pid
    raise LookupError(f"rank {number} does not run in the pod with UID {uid}")


def send(pids: Iterator[int] | list[int], number: signal.Signals) -> float:
    """Signal processes; the time just before, in seconds since 1970."""
    found = list(pids)
    if not found:
        raise LookupError("there is no process to signal")
    at = time.time()
    for pid in found:
        os.kill(pid, number)
    return at


def command(pid: int) -> str:
    """Its arguments, with spaces between them."""
    return _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def root(pid: int) -> Path:
    """The files that a process sees."""
    return Path(f"/proc/{pid}/root")


class PulseFile:
    """A rank's pulse, which outlives the rank while this is open."""

    def __init__(self, pid: int) -> None:
        """Raises LookupError if the process has none."""
        maps = _read(f"/proc/{pid}/maps").splitlines()
        path = next((line.split(maxsplit=5)[5] for line in maps if line.endswith("/pulse")), None)
        if path is None:
            raise LookupError(f"process {pid} has no pulse")
        self._file = (root(pid) / path.lstrip("/")).open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def step(self) -> int | None:
        """The last step that the rank has finished; None if it ended while it was saying so."""
        self._file.seek(0)
        found = pulse.parse(self._file.read())
        return found.step if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""  # it has ended, or is a thread of the kernel
