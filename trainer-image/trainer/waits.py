"""Every wait of a rank for a collective or a message: it is timed (stragglers.py), and is the moment to let the other
half of a micro-batch compute (parallel/halves.py).

torch has no hook for waiting, so its two functions that wait are wrapped. A thread says here what it wants of that;
threads that say nothing, such as those of saving and copying, wait as ever."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import _functional_collectives as functional


class _Wishes(threading.local):
    """What a thread wants at its waits."""

    before: Callable[[], None] | None = None  # called first, and not timed
    waited: Callable[[float], None] | None = None  # told afterwards how many seconds it took


this_thread = _Wishes()


def watch() -> None:
    """Wrap the two functions, once a process."""
    for owner, name in ((dist.Work, "wait"), (functional, "wait_tensor")):
        wait = getattr(owner, name)
        if not hasattr(wait, "unwatched"):
            setattr(owner, name, _watched(wait))


def _watched(wait: Any) -> Any:
    @functools.wraps(wait)
    def watched(*arguments: Any, **options: Any) -> Any:
        if this_thread.before is not None:
            this_thread.before()
        if this_thread.waited is None:
            return wait(*arguments, **options)
        began = time.perf_counter()
        try:
            return wait(*arguments, **options)
        finally:
            this_thread.waited(time.perf_counter() - began)

    watched.unwatched = wait  # type: ignore[attr-defined]
    return watched
