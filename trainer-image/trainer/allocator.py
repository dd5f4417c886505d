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
PIECE = 8 << 20  # bytes that are reserved at a time

_kept = False


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next step; before it, or the process that it was forked from, starts
    threads. False where there is no such C library, or somebody has set in the environment what it should do."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = (MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, NEVER), (ARENA_MAX, 1)
    global _kept
    _kept = mallopt is not None and all(mallopt(what, value) == 1 for what, value in wanted)
    return _kept


def reserve(size: int) -> None:
    """Take so many bytes from the kernel before they are needed, but no more than the process has: they are free then,
    and in the way of nobody. Nothing where memory is not kept.

    What is allocated among a step's tensors and stays, such as a profiler's records, splits up what the next step would
    take, and each new page costs the kernel some microseconds."""
    library = ctypes.CDLL(None)
    status = getattr(library, "mallinfo2", None)
    if not _kept or status is None:
        return
    status.restype = _Heap
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    enough = status().arena + min(size, status().arena)
    taken = []
    while status().arena < enough and (block := library.malloc(PIECE)):  # the first fill what is free already
        taken.append(ctypes.memset(block, 0, PIECE))
    for block in taken:
        library.free(block)


class _Heap(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]
    arena: int  # bytes of the heap, free ones with them


def give_back() -> None:
    """What is free now: what a start needs, a step may not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
