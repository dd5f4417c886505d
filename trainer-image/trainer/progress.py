"""The progress file: one line of JSON that Trainyard's supervisor reads (docs/protocol.md)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from trainer.pulse import Pulse

WARNINGS = 5  # the newest that are kept
WRITE_SECONDS = 0.1  # steps faster than this are not each written


class Progress:
    """What this rank reports. Written by the training loop and by the thread that saves checkpoints."""

    def __init__(self, path: Path | None, pulse: Pulse | None = None, **fields: Any) -> None:
        self._path = path
        self.pulse = pulse or Pulse(None)
        self._fields: dict[str, Any] = {"step": 0, **fields}
        self._warnings: dict[str, dict[str, str]] = {}
        self._seconds: deque[float] = deque(maxlen=21)
        self._written = 0.0
        self._stepped = False
        self._lock = threading.Lock()

    def step(self, step: int, seconds: float, **fields: Any) -> None:
        """A finished optimizer step that took `seconds`."""
        with self._lock:
            self._seconds.append(seconds)
            usual = median(self._seconds)
            self.pulse.stepped(step, usual)
            self._fields.update(step=step, secondsPerStep=round(usual, 4), **fields)
            if not self._stepped or time.monotonic() - self._written >= WRITE_SECONDS:
                self._stepped = True  # recoveries are measured up to the first
                self._write()

    def note(self, moment: str) -> None:
        """Field `moment` is now; written with the next word."""
        with self._lock:
            self._fields[moment] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def update(self, **fields: Any) -> None:
        """Other facts, written at once."""
        with self._lock:
            self._fields.update(fields)
            self._write()

    @contextmanager
    def activity(self, name: str, words: str = "") -> Iterator[None]:
        """Something between steps that may take long: told (as `words`), so that it is not taken for a hang."""
        with self.pulse.phase(name):
            self.update(activity=words or name)
            try:
                yield
            finally:
                self.update(activity=None)

    def warn(self, reason: str, message: str) -> None:
        """Something a user should know that stops nothing; the newest of each `reason` is kept."""
        with self._lock:
            self._warnings.pop(reason, None)
            self._warnings[reason] = {"reason": reason, "message": message,
                                      "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
            while len(self._warnings) > WARNINGS:
                del self._warnings[next(iter(self._warnings))]
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._path is None:
            return
        fields = {key: value for key, value in self._fields.items() if value is not None}
        new = self._path.with_name(self._path.name + ".new")
        try:
            new.write_text(json.dumps({**fields, "warnings": list(self._warnings.values())}) + "\n")
            os.replace(new, self._path)
        except OSError:
            return  # a full disk must not end training; the next write tries again
