"""Contenders take turns: each is a process, or one a rank, that makes steps only when it is told to.

So a figure and those it is compared with are of the same minutes, and what one keeps in memory or in its threads is no
other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self

from speed.cases import Case

FILE = "SPEED_CASE"
DESCRIPTOR = "SPEED_TURNS"
PATIENCE = 500.0  # s: a dozen processes import torch at once


class Turns:
    """In a contender: called between steps."""

    def __init__(self) -> None:
        self._line: Connection[Any, Any] = Connection(int(os.environ[DESCRIPTOR]))
        self._left = 0
        self._began = 0.0
        self._seconds: list[float] = []
        self.waited = 0.0  # s for data, in this turn
        self.answers: dict[str, Callable[[], Any]] = {"memory": peak_memory}

    def boundary(self) -> None:
        """A step ends (but before the first), another begins; in between it may be somebody else's turn. What is
        answered to in between is no part of a step."""
        if self._left:
            self._seconds.append(time.perf_counter() - self._began)
            self._left -= 1
            if not self._left:
                self._line.send({"seconds": self._seconds, "waited": self.waited})
        while not self._left:
            what, number = self._line.recv()
            if what == "end":
                os._exit(0)
            elif what == "go":
                self._left, self._seconds, self.waited = number, [], 0.0
            else:
                self._line.send(self.answers[what]())
        self._began = time.perf_counter()


def told() -> dict[str, Any]:
    """What this contender is to do."""
    found: dict[str, Any] = json.loads(Path(os.environ[FILE]).read_text())
    return found


def peak_memory() -> int:
    """Bytes that this process had resident at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class Contender:
    """The other end of a contender's lines."""

    def __init__(self, case: Case, folder: Path, settings: dict[str, Any],
                 of_rank: Callable[[int], dict[str, str]]) -> None:
        """`settings`: for the program; `of_rank`: environment of a rank."""
        folder.mkdir(parents=True)
        file = folder / "case.json"
        file.write_text(json.dumps({"precision": case.precision, "folder": str(folder), **case.options, **settings}))
        self.case = case
        self.folder = folder
        self.seconds: list[float] = []
        self.waited = 0.0
        self._lines: list[Connection[Any, Any]] = []
        self._processes = []
        for rank in range(case.ranks):
            here, there = Pipe()
            environment = {**os.environ, **of_rank(rank), FILE: str(file), DESCRIPTOR: str(there.fileno())}
            with (folder / f"log-{rank}").open("w") as log:
                self._processes.append(subprocess.Popen(
                    [sys.executable, "-m", case.program], env=environment, pass_fds=[there.fileno()], cwd=folder,
                    stdout=log, stderr=subprocess.STDOUT))  # fmt: skip
            there.close()
            self._lines.append(here)

    def ask(self, what: str, number: int = 0) -> list[Any]:
        """The answer of every rank. Raises RuntimeError with the end of the log if one has none."""
        for line in self._lines:
            line.send((what, number))
        return [self._receive(rank) for rank in range(len(self._lines))]

    def _receive(self, rank: int) -> Any:
        try:
            if self._lines[rank].poll(PATIENCE):
                return self._lines[rank].recv()
        except (EOFError, ConnectionError):
            pass
        log = (self.folder / f"log-{rank}").read_text()[-3000:]
        raise RuntimeError(f"{self.case.name}: rank {rank} does not answer, its log ends with\n{log}")

    def warm_up(self, steps: int) -> None:
        """Steps that do not count."""
        self.ask("go", steps)

    def turn(self, steps: int) -> None:
        """Steps that count; a step lasts as long as at the slowest rank."""
        found = self.ask("go", steps)
        self.seconds += [max(times) for times in zip(*(one["seconds"] for one in found), strict=True)]
        self.waited += max(one["waited"] for one in found)

    def close(self) -> None:
        """End its processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
