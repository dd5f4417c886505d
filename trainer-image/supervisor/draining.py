"""How ranks are told to save and stop: by the file that $TRAINYARD_DRAIN names, and by SIGTERM if they catch that."""

from __future__ import annotations

import signal
from typing import Mapping

from supervisor import hangs
from supervisor.files import read

VARIABLE = "TRAINYARD_DRAIN_BY"
WAYS = ("auto", "file", "signal")


def way(environment: Mapping[str, str]) -> str:
    """What the template says; ValueError if that is none of WAYS."""
    found = environment.get(VARIABLE) or WAYS[0]
    if found not in WAYS:
        raise ValueError(f"{VARIABLE} is {found!r}, expected one of {', '.join(WAYS)}")
    return found


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for this signal, as the kernel tells. False where that cannot be known."""
    for line in read(f"/proc/{pid}/status").splitlines():
        name, _, mask = line.partition(b":")
        if name == b"SigCgt":
            return bool(int(mask, 16) >> (number - 1) & 1)
    return False


def by_signal(how: str, runtime: str, pid: int, pulse_file: str) -> bool:
    """Whether a rank gets SIGTERM together with the file. The shipped trainer, which is known by its pulse, and whoever
    says so knows the file. Of the others those that catch SIGTERM know that; what catches neither would only be ended
    by it, though it may be waiting for the file. MindSpore is a library that may catch it for itself."""
    if how != "auto":
        return how == "signal"
    return runtime == "torch" and catches(pid, signal.SIGTERM) and hangs.read(pulse_file) is None
