"""A rank's pulse: a small mapped file in which it says what it does and how far it is, and what that tells of a hang.

    header  magic, version, phase, signal that dumps its stacks (0: none), steps of this process, step,
            since when it has made no progress (s, monotonic), seconds of a usual step
    groups  for each process group: name, collectives issued, collectives completed

`version` is odd while the rank writes. Trainer and supervisor share this module. Pure but for reading the file."""

from __future__ import annotations

import math
import struct
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

MAGIC = 0x3153554C55505954  # "TYPULUS1"
PHASES = ("start", "compile", "step", "evaluate", "save", "export", "autotune")
HEADER = struct.Struct("<QIIIIQdd")
GROUP = struct.Struct("<24sQQ")
COUNT = struct.Struct("<I")
GROUPS = 64
STACKS_SUFFIX = ".stacks"  # of the file beside it, into which stacks are dumped
SIZE = HEADER.size + COUNT.size + GROUPS * GROUP.size
VERSION_AT = 8  # byte of `version`

LEAST = 5.0  # s, and
USUAL = 10.0  # times the median step: `auto` for the phase step
AFTER = 5  # steps of a process; the ones before may load and compile
LIMITS = {"start": 1800.0, "compile": 1800.0, "evaluate": 1800.0, "save": 1800.0, "export": 3600.0,
          "autotune": 1800.0}  # s; of autotune each layout has its own
STALLED = (3.0, 2.0)  # times the median step, and at least so many s: too long for a step, if a peer is lost as well
BLIND = 2.0  # s between two looks after which the supervisor itself was stopped or starved
UNINTERRUPTIBLE = 3  # looks in a row: a moment of it is any disk access


class Collectives(NamedTuple):
    """How far a rank is in one group."""

    group: str
    issued: int
    completed: int


class Pulse(NamedTuple):
    """What a rank says."""

    phase: str
    signal: int
    steps: int
    step: int
    since: float
    usual: float
    collectives: Tuple[Collectives, ...] = ()


def parse(content: bytes) -> Optional[Pulse]:
    """The file's content; None if it is not one, or was read while it was written."""
    if len(content) < SIZE:
        return None
    magic, version, phase, number, steps, step, since, usual = HEADER.unpack_from(content)
    if magic != MAGIC or version % 2 or phase >= len(PHASES) or not (math.isfinite(since) and math.isfinite(usual)):
        return None
    (count,) = COUNT.unpack_from(content, HEADER.size)
    found = []
    for at in range(min(count, GROUPS)):
        name, issued, completed = GROUP.unpack_from(content, HEADER.size + COUNT.size + at * GROUP.size)
        found.append(Collectives(name.rstrip(b"\0").decode("utf-8", "replace"), issued, completed))
    return Pulse(PHASES[phase], number, steps, step, since, usual, tuple(found))


class Rank(NamedTuple):
    """One look at a rank."""

    rank: int
    pulse: Optional[Pulse]
    state: str  # of the process, as /proc/PID/stat has it


class Hang(NamedTuple):
    """The ranks of this pod make no progress."""

    culprit: Optional[int]  # a rank that cannot run; None: they all wait for something
    reason: str
    phase: str
    step: int
    silent: float  # s without progress


class Watch:
    """Looks at the ranks of a pod again and again. `wanted` is failurePolicy.hangSeconds, `auto` or a number."""

    def __init__(self, wanted: str) -> None:
        self._fixed = None if wanted in ("", "auto") else float(wanted)
        self._seen_since = 0.0  # we have looked without a break since then
        self._looked = 0.0
        self._stuck: Dict[int, int] = {}  # looks in a row that found a rank uninterruptible

    def limit(self, pulse: Pulse) -> Optional[float]:
        """Seconds without progress that are a hang; None: not known yet."""
        if pulse.phase != "step":
            return max(LIMITS[pulse.phase], self._fixed or 0.0)
        if self._fixed is not None:
            return self._fixed
        return max(LEAST, USUAL * pulse.usual) if pulse.steps >= AFTER else LIMITS["compile"]

    def overdue(self, rank: Rank, now: float) -> bool:
        """Whether it is silent for longer than its phase may take."""
        limit = self.limit(rank.pulse) if rank.pulse is not None else None
        return limit is not None and rank.pulse is not None and now - max(rank.pulse.since, self._seen_since) > limit

    def stalled(self, ranks: Sequence[Rank], now: float) -> bool:
        """Whether all ranks of the pod are in a step that takes far longer than usual. No hang yet by itself."""
        return bool(ranks) and all(rank.pulse is not None and self._stalled(rank.pulse, now) for rank in ranks)

    def _stalled(self, pulse: Pulse, now: float) -> bool:
        if pulse.phase != "step" or pulse.steps < AFTER:
            return False
        times, least = STALLED
        return now - max(pulse.since, self._seen_since) > max(least, times * pulse.usual)

    def look(self, ranks: Sequence[Rank], now: float) -> Optional[Hang]:
        """A hang, if all ranks of the pod make no progress, or one that cannot run is among those that make none.

        A time in which nobody looked (this process was stopped, or got no CPU) is nobody's fault."""
        if now - self._looked > BLIND:
            self._seen_since = now
        self._looked = now
        late = [rank for rank in ranks if self.overdue(rank, now)]
        for rank in ranks:
            self._stuck[rank.rank] = self._stuck.get(rank.rank, 0) + 1 if rank.state == "D" else 0
        for rank in late:
            if rank.state == "T" or self._stuck[rank.rank] >= UNINTERRUPTIBLE:
                how = "stopped (SIGSTOP)" if rank.state == "T" else "in an uninterruptible wait of the kernel"
                return _hang(rank, now, rank.rank, f"rank {rank.rank} is {how}")
        if late and len(late) == len(ranks):
            return _hang(late[0], now, None, "all ranks of the pod wait")
        return None


def _hang(rank: Rank, now: float, culprit: Optional[int], what: str) -> Hang:
    assert rank.pulse is not None
    silent = now - rank.pulse.since
    return Hang(culprit, f"{what}; no progress for {silent:.1f} s in phase {rank.pulse.phase} after step "
                         f"{rank.pulse.step}", rank.pulse.phase, rank.pulse.step, silent)


def positions(ranks: Sequence[Rank]) -> List[Tuple[str, int, int, int]]:
    """For a report: (group, rank, issued, completed), of every group of every rank."""
    return [(one.group, rank.rank, one.issued, one.completed)
            for rank in ranks if rank.pulse is not None for one in rank.pulse.collectives]
