"""Ranks that are slower than the others at their own work, that is without the time they wait for each other.

Measured where waiting blocks the host: gloo, on CPUs. On accelerators the host only queues work, and nothing is
judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trainer import waits
from trainer.parallel.layout import Layout

EVERY = 10.0  # s between two comparisons
SLOW = 1.5  # times the median
FOR = 60.0  # s


def measurable(layout: Layout, device: torch.device) -> bool:
    """Whether a rank's own time can be told from its waiting, and there is a rank that does the same work."""
    return device.type == "cpu" and layout.world_size > layout.pipeline


class OwnTime:
    """This rank's own seconds a batch, since the last comparison."""

    def __init__(self) -> None:
        self._waited = 0.0  # s
        self._own, self._batches = 0.0, 0
        self._began = self._since = time.perf_counter()

    def measure_waits(self) -> None:
        """From now on, time every wait of this thread, and of one that computes for it, for a collective or a
        message."""
        waits.watch()
        waits.this_thread.waited = self._add

    def _add(self, seconds: float) -> None:
        self._waited += seconds

    def begin(self) -> None:
        """A batch begins."""
        self._began = time.perf_counter() - self._waited

    def arrive(self) -> None:
        """It has reached the all-reduce that ends the batch."""
        self._own += time.perf_counter() - self._waited - self._began
        self._batches += 1

    def due(self) -> bool:
        """Is it time to compare? One rank's answer goes for all."""
        return time.perf_counter() - self._since >= EVERY

    def take(self) -> tuple[float, float]:
        """Own seconds a batch, and over how many seconds that was; starts again."""
        now = time.perf_counter()
        found = (self._own / max(1, self._batches), now - self._since)
        self._own, self._batches, self._since = 0.0, 0, now
        return found


@dataclass(frozen=True)
class Slow:
    """A rank that has been slow for a minute."""

    rank: int
    own: float  # s a batch
    usual: float  # s a batch, the median of its stage


@dataclass
class Stragglers:
    """Compares the ranks' own times. Every rank is given the same numbers and comes to the same answer."""

    slow_for: dict[int, float] = field(default_factory=dict)  # by rank: seconds in a row
    told: set[int] = field(default_factory=set)

    def compare(self, own: Sequence[float], stages: Sequence[int], seconds: float) -> list[Slow]:
        """`own` by rank, means of the last `seconds`; `stages` the pipeline stage of each: only ranks of the same one
        do the same work. The ranks that have been slow for a minute, each told once until it is as fast as the others
        again."""
        found = []
        for rank, (mine, stage) in enumerate(zip(own, stages, strict=True)):
            peers = sorted(each for each, where in zip(own, stages, strict=True) if where == stage)
            usual = peers[(len(peers) - 1) // 2]
            if mine <= SLOW * usual:
                self.slow_for.pop(rank, None)
                self.told.discard(rank)
                continue
            self.slow_for[rank] = self.slow_for.get(rank, 0.0) + seconds
            if self.slow_for[rank] >= FOR and rank not in self.told:
                self.told.add(rank)
                found.append(Slow(rank, mine, usual))
        return found
