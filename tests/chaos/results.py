"""What was measured of a case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

PHASES = {"detect": "detect", "decide": "decide", "replace": "replace", "rendezvous": "rendezvous",
          "restore": "restore", "firstStep": "first step"}


@dataclass(frozen=True)
class Recovered:
    """One fault, and the way back."""

    seconds: float  # from the fault to the next finished step of the whole job
    lost: int  # finished steps that were computed again
    counted: int = 0  # restarts that count
    milliseconds: Mapping[str, int] = field(default_factory=dict)  # by phase


@dataclass
class Result:
    """All of a case."""

    key: str
    name: str
    recovered: list[Recovered] = field(default_factory=list)
    beside: list[Recovered] = field(default_factory=list)  # the same under torchrun
    beside_failed: str = ""
    losses: str = ""  # how they compare with the undisturbed run's
    failed: list[str] = field(default_factory=list)  # what did not hold
    aim: float | None = None
    throughput: float | None = None  # share of the undisturbed
    throughput_aim: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of all faults."""
        return [each.seconds for each in self.recovered]

    @property
    def median(self) -> float | None:
        """Median seconds; None if nothing was measured."""
        return statistics.median(self.seconds) if self.seconds else None

    def phases(self) -> dict[str, float]:
        """Median seconds by phase."""
        return {name: statistics.median(each.milliseconds[name] for each in self.recovered
                                        if name in each.milliseconds) / 1000
                for name in PHASES if any(name in each.milliseconds for each in self.recovered)}

    def verdict(self) -> str:
        """How the median stands to the aim; a miss names the phases that take longest."""
        if self.failed:
            return "FAILED"
        if self.throughput is not None:
            word = "met" if self.throughput >= self.throughput_aim else "missed"
            return f"{self.throughput_aim:.0%} of the throughput: {word}, {self.throughput:.1%}"
        if self.aim is None or self.median is None:
            return ""
        if self.median <= self.aim:
            return f"{self.aim:.1f}: met"
        slow = sorted(self.phases().items(), key=lambda item: -item[1])[:2]
        return f"{self.aim:.1f}: missed, " + ", ".join(f"{PHASES[name]} {seconds:.2f}" for name, seconds in slow)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so many are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share * 100) // 100) - 1)]
