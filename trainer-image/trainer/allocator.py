"""What the C library does with memory that a step has freed, where ranks compute on CPUs.

glibc maps every large block anew and gives it back when it is freed, so that each step begins with pages that the
kernel has to clear: 92,000 of them for a model of 56 million parameters. What the threads besides the first allocate,
such as those that communicate, comes from heaps of their own, which are given back whatever one asks for; where one
thread computes, all share its heap. Several that compute would wait for each other, for some kernels allocate in their
innermost loop. What it costs is in docs/speed.md."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt(3)
LARGEST = 1 << 30  # bytes; a block of more is mapped by itself still
NEVER = -1
PIECE = 8 << 20  # bytes that are reserved at a time
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)

_kept = False


def keep_freed_memory(threads: int) -> bool:
    """Let this process, of which so many `threads` compute, keep what it frees, for its next step; before it, or the
    process that it was forked from, starts threads. False where there is no such C library, or somebody has set in the
    environment what it should do."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = [(MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, NEVER), *([(ARENA_MAX, 1)] if threads == 1 else [])]
    global _kept
    _kept = mallopt is not None and all(mallopt(what, value) == 1 for what, value in wanted)
    return _kept


def reserve(size: int, ranks: int) -> None:
    """Take so many bytes from the kernel before they are needed, but no more than the heap has: they are free then, and
    in the way of nobody. Nothing where memory is not kept, or if with what is free in the heap, and may have to come
    from the kernel again, it would be more than half of what is left to each of the `ranks` that share it.

    What is allocated among a step's tensors and stays, such as a profiler's records, splits up what the next step would
    take, and each new page costs the kernel some microseconds."""
    library = ctypes.CDLL(None)
    status = getattr(library, "mallinfo2", None)
    if not _kept or status is None:
        return
    status.restype = _Heap
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    heap = status()
    size = min(size, heap.arena)
    if heap.fordblks + size > unused_bytes() // ranks // 2:
        return
    taken = []
    for _ in range((heap.fordblks + size) // PIECE + 1):  # the first fill what is free already
        block = library.malloc(PIECE)
        if not block:
            break
        taken.append(ctypes.memset(block, 0, PIECE))
        if status().arena >= heap.arena + size:
            break
    for block in taken:
        library.free(block)


def unused_bytes() -> int:
    """What container and machine leave; 0 where they do not say."""
    left = []
    for limit, used, kept in CGROUPS:
        try:
            most, now = int(Path(limit).read_text()), int(Path(used).read_text())
            stat = dict(line.split() for line in Path(kept).read_text().splitlines())
            # Files that were read stay in the cache and count as used, until somebody needs the memory.
            left.append(most - now + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue  # not this version of cgroups, or no limit ("max")
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        left.append(next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) << 10)
    return max(0, min(left, default=0))


class _Heap(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]
    arena: int  # bytes of the heap
    fordblks: int  # those that are free


def give_back() -> None:
    """What is free now: what a start needs, a step may not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
