"""Sums of the copies that this pod's ranks write: taken beside training, and kept in the slots.

A copy that is sent gets its sum on the way (sender.py), one that a checkpoint is written from before that (writer.py),
any other as soon as its rank says that it is there. What is overwritten meanwhile is given up: it is needed no more.

So a copy has no sum for as long as one takes, from the moment that it is whole. Ranks may die in that moment; the
copier goes on then, and one that is started anew begins with what it finds. If ranks are back before that, they take
the copy as it is: a sum taken first would say nothing of the time before it, and the step would be lost for certain."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Callable, Dict, Optional

from supervisor.copies.keeper import Keeper
from supervisor.copies.slot import CHUNK, Damaged, Slot


class Sums:
    """Of all ranks of this pod. Thread-safe."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._seconds: Dict[str, float] = {}

    def seconds(self, layout: str, rank: int) -> float:
        """CPU seconds that a sum of this rank's copies takes: those of the newest; 0 before there was one."""
        return self._seconds.get(f"{layout}/{rank}", 0.0)

    def order(self, layout: str, rank: int, place: int, number: int) -> None:
        """Have this slot summed as long as it holds the content with this number. A thread for each order: one of an
        older content ends within milliseconds."""
        name = f"{layout}/{rank}.{place}"
        self._keeper.path("own", name)  # ValueError if there is no such name
        threading.Thread(target=self._take, args=(name, number), name=f"sum {rank}", daemon=True).start()

    def catch_up(self) -> None:
        """Sum what an earlier copier has left without."""
        with contextlib.suppress(OSError):  # a folder that goes meanwhile
            for kind, name in self._keeper.slots():
                if kind == "own":
                    self._take(name, None)

    def _take(self, name: str, number: Optional[int]) -> None:
        with contextlib.suppress(OSError, Damaged):
            slot = Slot.open(self._keeper.path("own", name), write=True)
            try:
                present = slot.number()
                if present is not None and number in (None, present):
                    self.of(slot, present)
            finally:
                slot.close()

    def of(self, slot: Slot, number: int, stop: Callable[[], bool] = lambda: False) -> Optional[int]:
        """The sum of the content with this number, taken and noted if it was not; None once that is overwritten, or
        `stop` says so. The slot is open for writing."""
        with self._keeper.lock(slot.path):
            known = slot.known_sum()
            if slot.number() != number or stop():
                return None
            if known is not None:
                return known
            chunks, before = 0, time.thread_time()

            def in_vain() -> bool:
                nonlocal chunks
                over = stop() or slot.number() != number
                chunks += not over
                return over

            total = slot.compute_sum(in_vain)
            over = stop() or slot.number() != number
            spent = time.thread_time() - before
            if chunks:  # of one that was given up, what it would have taken
                owner = slot.path.rpartition(".")[0].split("/")[-2:]
                self._seconds["/".join(owner)] = spent * max(1.0, len(slot.data) / (chunks * CHUNK))
            if over:
                return None
            slot.note_sum(number, total)
            return total
