"""Spikes of the loss: which step's is one. Loop.rewind() has what is done about it."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

from trainyard.api.train import SpikeConfig

REWINDS = 3  # without as many ordinary steps between them as the window has; then going back does not help


class Spikes:
    """Compares each loss with those of the steps before it. All ranks see the same losses and come to the same
    answer; a checkpoint carries what is remembered, so that a restart changes nothing."""

    def __init__(self, config: SpikeConfig, remembered: dict[str, Any] | None = None) -> None:
        self.config = config
        found = remembered or {}
        self._losses: deque[float] = deque(found.get("losses", ()), maxlen=config.window)
        self.rewinds: int = found.get("rewinds", 0)
        self._ordinary: int = found.get("ordinary", 0)  # steps since the last rewind

    @property
    def usual(self) -> float:
        """The median of the last `window` losses."""
        return median(self._losses)

    def is_one(self, loss: float) -> bool:
        """Whether this loss is, as soon as there are enough before it."""
        return len(self._losses) == self.config.window and loss > self.config.factor * self.usual

    def add(self, loss: float) -> None:
        """A loss that is none."""
        self._losses.append(loss)
        self._ordinary += 1
        if self._ordinary >= self.config.window:
            self.rewinds = 0

    def rewound(self) -> bool:
        """The run went back; whether that was once too often."""
        self.rewinds += 1
        self._ordinary = 0
        return self.rewinds > REWINDS

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"spikes": {"losses": list(self._losses), "rewinds": self.rewinds, "ordinary": self._ordinary}}
