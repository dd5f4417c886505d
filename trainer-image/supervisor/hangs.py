"""Looks at the ranks' pulses and processes, and has the stacks of those that hang dumped before anything ends them."""

from __future__ import annotations

import os
import time
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from supervisor import pulse
from supervisor.pulse import STACKS_SUFFIX, Hang, Watch

EVERY = 0.25  # s between two looks
DUMP = 0.3  # s that ranks get to write their stacks
TEXT = 3500  # bytes of stacks in a report


class Process(NamedTuple):
    """A rank to look at."""

    rank: int
    pid: int
    file: str  # of its pulse


class Found(NamedTuple):
    """A hang with its evidence; without one: it is over."""

    hang: Optional[Hang]
    text: str = ""  # stacks
    positions: Tuple[Tuple[str, int, int, int], ...] = ()


class Hangs:
    """For the ranks of one run."""

    def __init__(self, wanted: str) -> None:
        self._watch = Watch(wanted)
        self._look_at = time.monotonic() + EVERY
        self._asked: Optional[Hang] = None  # its stacks are being written
        self._told: Optional[Hang] = None
        self.stalled = False  # at the last look: far too long in a step, which is believed to be a hang only later

    def deadline(self) -> float:
        """When step() is due."""
        return self._look_at

    def step(self, processes: List[Process]) -> Optional[Found]:
        """A hang that was not told yet, after the stacks of the ranks were written; or that the last one is over."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + EVERY
        if self._asked is not None:
            self._told, self._asked = self._asked, None
            return Found(self._told, stacks(processes, self._told.culprit),
                         tuple(pulse.positions(list(look(processes).values()))))
        ranks = look(processes)
        hang = self._watch.look(list(ranks.values()), now)
        self.stalled = self._watch.stalled(list(ranks.values()), now)
        if hang is None:
            over, self._told = self._told is not None, None
            return Found(None) if over else None
        if self._told is None or hang.culprit != self._told.culprit:
            self._asked, self._look_at = hang, now + DUMP
            ask_for_stacks(processes, ranks)
        return None


def look(processes: List[Process]) -> Dict[int, pulse.Rank]:
    """Every rank's pulse and the state of its process."""
    return {one.rank: pulse.Rank(one.rank, read(one.file), state(one.pid)) for one in processes}


def read(path: str) -> Optional[pulse.Pulse]:
    """None before the rank has said anything. Tried again if it was just being written."""
    for _ in range(3):
        try:
            with open(path, "rb") as file:
                content = file.read(pulse.SIZE)
        except OSError:
            return None
        found = pulse.parse(content)
        if found is not None:
            return found
    return None


def state(pid: int) -> str:
    """R, S, D, T, ... as the kernel has it; empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read(4096)
    except OSError:
        return ""
    return content[content.rfind(b")") + 2:][:1].decode("ascii", "replace")  # the name may hold brackets


def ask_for_stacks(processes: List[Process], ranks: Mapping[int, pulse.Rank]) -> None:
    """Those that said that they know the signal; others would die of it."""
    for one in processes:
        found = ranks[one.rank].pulse
        if found is not None and found.signal:
            try:
                os.truncate(one.file + STACKS_SUFFIX, 0)
                os.kill(one.pid, found.signal)
            except OSError:
                pass  # it has ended meanwhile


def stacks(processes: List[Process], culprit: Optional[int]) -> str:
    """What was dumped, the culprit first, each rank its share."""
    texts = []
    for one in sorted(processes, key=lambda one: (one.rank != culprit, one.rank)):
        try:
            with open(one.file + STACKS_SUFFIX, encoding="utf-8", errors="replace") as file:
                text = file.read(TEXT).strip()
        except OSError:
            continue
        if text:
            texts.append(f"rank {one.rank}:\n{text}")
    share = TEXT // max(1, len(texts))
    return "\n".join(text[:share] for text in texts)
