"""What is remembered of train.autotune from one start of the ranks to the next: which layout was chosen, and what
became of starts that ended before one was. Beside the checkpoints and in each pod's memory, for either may be missing.
No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainyard.layout.autotune import Measured

from trainer.config import Run
from trainer.files import write_durably

FILE = "autotune.json"
STARTS = 4  # that measure at most; then the planner's order decides
ENDS = 2  # of the gang while a layout was measured, after which it is left out


@dataclass(frozen=True)
class Record:
    """Of one set of candidates, by their names."""

    candidates: tuple[str, ...]
    starts: int = 0  # that began to measure
    at: str = ""  # being measured when this was written
    ends: Mapping[str, int] = field(default_factory=dict)  # by name: times that the gang ended meanwhile
    problems: Mapping[str, str] = field(default_factory=dict)  # by name: why it failed
    tuned: str = ""  # what was chosen
    rows: tuple[Measured, ...] = ()  # what it was chosen from

    def begun(self) -> Record:
        """At another start that measures."""
        ends = dict(self.ends)
        if self.at and self.at not in self.problems:
            ends[self.at] = ends.get(self.at, 0) + 1
        return replace(self, starts=self.starts + 1, at="", ends=ends)

    def left_out(self) -> dict[str, str]:
        """By name: why a candidate is not measured (again)."""
        words = f"the gang ended {ENDS} times while it was measured"
        return {name: words for name, count in self.ends.items() if count >= ENDS} | dict(self.problems)

    def chosen(self, rows: Iterable[Measured], name: str) -> Record:
        """With the choice."""
        return replace(self, at="", tuned=name, rows=tuple(rows))

    def dump(self) -> str:
        """As JSON."""
        return json.dumps({
            "candidates": self.candidates, "starts": self.starts, "at": self.at, "ends": self.ends,
            "problems": self.problems, "tuned": self.tuned, "measured": [row._asdict() for row in self.rows]})

    @classmethod
    def parse(cls, text: str) -> Record:
        """The reverse. Raises ValueError, KeyError or TypeError."""
        told: dict[str, Any] = json.loads(text)
        return cls(tuple(told["candidates"]), told["starts"], told["at"], told["ends"], told["problems"], told["tuned"],
                   tuple(Measured(**row) for row in told["measured"]))


def places(run: Run) -> list[Path]:
    """Files in which this rank keeps the record: beside the checkpoints (rank 0), and in its pod's memory (one rank a
    pod)."""
    found = []
    if run.checkpoint is not None and run.rank.rank == 0:
        found.append(run.checkpoint / FILE)
    if run.memory is not None and run.rank.local_rank == 0:
        found.append(run.memory.folder / FILE)
    return found


def recall(run: Run, candidates: tuple[str, ...]) -> Record:
    """What this rank finds, about these candidates."""
    found = []
    for path in places(run):
        try:
            found.append(Record.parse(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # none, or damaged: whoever has a better one tells it
    return newest(found, candidates, run.tuned)


def newest(found: Iterable[Record], candidates: tuple[str, ...], told: str = "") -> Record:
    """Of several records the one that knows most. `told`: the choice as the operator remembers it."""
    fitting = [record for record in found if record.candidates == candidates]
    best = max(fitting, key=lambda record: (bool(record.tuned), record.starts, len(record.problems)),
               default=Record(candidates))
    return replace(best, tuned=told) if told in candidates and not best.tuned else best


def keep(run: Run, record: Record) -> str:
    """Write it where this rank does. Returns what was wrong, for a warning."""
    problem = ""
    for path in places(run):
        new = path.with_name(f"{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(new, record.dump().encode())
            os.replace(new, path)
        except OSError as error:
            problem = f"cannot remember the layouts that were measured in {path}: {error.strerror}"
    return problem
