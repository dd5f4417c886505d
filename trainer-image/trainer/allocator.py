"""What the C library does with memory that a step has freed, where ranks compute on CPUs.

glibc maps every large block anew and gives it back when it is freed, so that each step begins with pages that the
kernel has to clear: 92,000 of them for a model of 56 million parameters. What the threads besides the first allocate,
such as those that communicate, comes from heaps of their own, which are given back whatever one asks for, so all share
the first thread's. What it costs is in docs/speed.md."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt(3)
LARGEST = 1 << 30  # bytes; a block of more is mapped by itself still
NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next step; before it, or the process that it was forked from, starts
    threads. False where there is no such C library, or somebody has set in the environment what it should do."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = (MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, NEVER), (ARENA_MAX, 1)
    return mallopt is not None and all(mallopt(what, value) == 1 for what, value in wanted)


def give_back() -> None:
    """What is free now: what a start needs, a step may not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
