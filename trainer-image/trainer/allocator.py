"""What the C library does with memory that a step has freed, where ranks compute on CPUs.

glibc maps every large block anew and gives it back when it is freed, so that each step begins with pages that the
kernel has to clear: 92,000 of them for a model of 56 million parameters. What it costs is in docs/speed.md."""

from __future__ import annotations

import ctypes
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
LARGEST = 1 << 30  # bytes; a block of more is mapped by itself still
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next step. False where there is no such C library, or somebody has
    set in the environment what it should do."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(MMAP_THRESHOLD, LARGEST) == 1 and mallopt(TRIM_THRESHOLD, NEVER) == 1


def give_back() -> None:
    """What is free now: what a start needs, a step may not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
