"""What rank 0 of a gang has logged, read from the nodes' own disks: that needs no API server, kubelet or network, and
each line carries the time at which containerd took it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

POLL = 0.03  # s; the times do not depend on it
_LINE = re.compile(rb"(\S+) std(?:out|err) [FP] (.*)")
_STEP = re.compile(r"step (\d+)/\d+ (?:loss (\S+)|batch skipped)")
_START = re.compile(r"model: .* million parameters")
_RESUMED = re.compile(r"resumed after step (\d+) from (.*)")


@dataclass(frozen=True)
class Step:
    """A finished step of the whole job."""

    at: float  # seconds since 1970
    number: int
    loss: str  # as it was printed
    start: int  # the how manieth start of the ranks it belongs to


@dataclass
class Start:
    """A start of the ranks."""

    at: float
    resumed: int = 0  # the step that it went on from
    source: str = ""  # what it was restored from


class Journal:
    """Follows every log of the pods whose names begin with `prefix`, in a thread."""

    def __init__(self, disks: Sequence[Path], namespace: str, prefix: str) -> None:
        self._pattern = f"{namespace}_{prefix}-*/trainer/*.log"
        self._folders = [disk / "var" / "log" / "pods" for disk in disks]
        self._files: dict[Path, BinaryIO] = {}  # kept open: a deleted pod's log can still be read to its end
        self._rest: dict[Path, bytes] = {}
        self._lines: list[tuple[float, str]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        for file in self._files.values():
            file.close()

    def _follow(self) -> None:
        while not self._stop.wait(POLL):
            self._read()

    def _read(self) -> None:
        for folder in self._folders:
            for path in folder.glob(self._pattern):
                if path not in self._files:
                    try:
                        self._files[path] = path.open("rb")
                    except FileNotFoundError:
                        continue  # deleted meanwhile
        found = []
        for path, file in self._files.items():
            *lines, self._rest[path] = (self._rest.get(path, b"") + file.read()).split(b"\n")
            found += [parsed for line in lines if (parsed := _parse(line)) is not None]
        if found:
            with self._lock:
                self._lines = sorted([*self._lines, *found])

    # ---- what it says

    def read(self) -> tuple[list[Step], list[Start]]:
        """Steps and starts so far, oldest first."""
        with self._lock:
            lines = list(self._lines)
        steps: list[Step] = []
        starts: list[Start] = []
        for at, text in lines:
            if _START.search(text):
                starts.append(Start(at))
            elif (resumed := _RESUMED.search(text)) and starts:
                starts[-1].resumed, starts[-1].source = int(resumed[1]), resumed[2]
            elif step := _STEP.search(text):
                steps.append(Step(at, int(step[1]), step[2] or "skipped", len(starts)))
        return steps, starts

    @property
    def step(self) -> int:
        """The newest finished step; 0 before the first."""
        steps, _ = self.read()
        return steps[-1].number if steps else 0

    def losses(self) -> dict[int, str]:
        """By step, as it was last computed."""
        return {step.number: step.loss for step in self.read()[0]}

    def next_step(self, at: float, restarted: bool) -> Step | None:
        """The first step that was finished after `at`; of a start after `at` if `restarted`."""
        steps, starts = self.read()
        late = {number for number, start in enumerate(starts, 1) if start.at > at}
        return next((step for step in steps if step.at > at and (not restarted or step.start in late)), None)

    def lost(self, step: Step, finished: int | None = None) -> int:
        """Finished steps that were computed again by the start which `step` belongs to. `finished`: the last that every
        rank had finished before; rank 0 may tell of one that another rank is still at."""
        steps, starts = self.read()
        before = max((each.number for each in steps if each.start < step.start), default=0)
        return max(0, (before if finished is None else min(before, finished)) - starts[step.start - 1].resumed)

    def text(self) -> str:
        """The last lines, for an error message."""
        with self._lock:
            return "\n".join(f"{time.strftime('%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03} {text}"
                             for at, text in self._lines[-60:])


def _parse(line: bytes) -> tuple[float, str] | None:
    match = _LINE.match(line)
    if match is None:
        return None
    stamp = re.sub(r"(\.\d{6})\d*", r"\1", match[1].decode()).replace("Z", "+00:00")
    return datetime.fromisoformat(stamp).timestamp(), match[2].decode(errors="replace")
