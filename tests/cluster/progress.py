"""Progress of a long command: one live line on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_FRAMES = "|/-\\"


class Progress:
    """Prints the steps of one command to standard error.

    ``detail`` may be called from any thread while a step runs; on a terminal it shows beside the step, elsewhere it
    is dropped, because a log wants a line a step and no more.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._live = not quiet and self._stream.isatty()
        self._quiet = quiet
        self._detail = ""

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show ``text`` while the block runs, and how long it took when it has ended well."""
        began = time.monotonic()
        self._detail = ""
        done = threading.Event()
        spinner = threading.Thread(target=self._spin, args=(text, began, done), daemon=True)
        if self._live:
            spinner.start()
        try:
            yield
        except BaseException:
            self._finish(spinner, done)
            self._line(f"  {time.monotonic() - began:6.1f} s  FAILED: {text}")
            raise
        self._finish(spinner, done)
        self._line(f"  {time.monotonic() - began:6.1f} s  {text}")

    def detail(self, text: str) -> None:
        self._detail = text

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    def _finish(self, spinner: threading.Thread, done: threading.Event) -> None:
        done.set()
        if self._live:
            spinner.join()
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _spin(self, text: str, began: float, done: threading.Event) -> None:
        frame = 0
        while not done.wait(0.1):
            frame += 1
            detail = f"  ({self._detail})" if self._detail else ""
            line = f"{_FRAMES[frame % 4]} {time.monotonic() - began:5.1f} s  {text}{detail}"
            self._stream.write(f"\r\x1b[K{line[:118]}")
            self._stream.flush()
