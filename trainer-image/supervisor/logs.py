"""Output of the ranks: passed on line by line with the rank's number in front, the last lines kept.

A thread of its own, because writing to the container's log may block, and the supervisor must not: a slow log then
stalls the ranks exactly as a full pipe would.
"""

from __future__ import annotations

import collections
import fcntl
import os
import selectors
import threading
import time
from typing import Callable, Deque, List, Optional, Tuple

LINE = 16 * 1024  # bytes; longer lines are cut
KEEP = 50  # lines a rank
PIPE = 1 << 20  # bytes
SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, named by fcntl only from Python 3.10 on
CUT = b" ... [line cut]"
OWN = b"[supervisor] "


class Tail:
    """The last lines of one rank. Filled by the log thread, read by the main one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: Deque[bytes] = collections.deque(maxlen=KEEP)
        self._errors: Deque[bytes] = collections.deque(maxlen=KEEP)
        self.open = 0  # streams that have not ended

    def add(self, lines: List[bytes], error: bool) -> None:
        """Keep these lines, `error` if they came from stderr."""
        with self._lock:
            self._lines.extend(lines[-KEEP:])
            if error:
                self._errors.extend(lines[-KEEP:])

    def read(self) -> Tuple[List[str], List[str]]:
        """All lines, and those of stderr."""
        with self._lock:
            return [[line.decode("utf-8", "replace") for line in kept]  # type: ignore[return-value]
                    for kept in (self._lines, self._errors)]


class Stream:
    """Cuts one stream into lines."""

    def __init__(self, prefix: bytes, tail: Tail, error: bool) -> None:
        self.prefix = prefix
        self.tail = tail
        self.error = error
        self._rest = b""
        self._cutting = False  # the rest of a line that was too long is dropped

    def feed(self, data: bytes) -> bytes:
        """Take what was read; what to write. The part after the last newline waits for more."""
        if self._cutting:
            _, newline, data = data.partition(b"\n")
            if not newline:
                return b""
            self._cutting = False
        lines = (self._rest + data).split(b"\n")
        rest = lines.pop()
        if len(rest) > LINE:
            rest = rest[rest.rfind(b"\r") + 1:]  # a progress bar redraws its line with \r: only the last drawing counts
        if len(rest) > LINE:
            lines.append(rest)
            rest, self._cutting = b"", True
        self._rest = rest
        return self._emit(lines)

    def end(self) -> bytes:
        """The last line, if it had no newline."""
        rest, self._rest = self._rest, b""
        return self._emit([rest] if rest else [])

    def _emit(self, lines: List[bytes]) -> bytes:
        if not lines:
            return b""
        lines = [line if len(line) <= LINE and b"\r" not in line else _tidy(line) for line in lines]
        self.tail.add(lines, self.error)
        return self.prefix + (b"\n" + self.prefix).join(lines) + b"\n"


def _tidy(line: bytes) -> bytes:
    line = line.rstrip(b"\r")
    line = line[line.rfind(b"\r") + 1:]
    return line if len(line) <= LINE else line[:LINE] + CUT


class Logs(threading.Thread):
    """Reads all streams of all ranks and writes them to `out` (a file descriptor)."""

    def __init__(self, out: int = 1, on_end: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="logs", daemon=True)
        self._out = out
        self._on_end = on_end
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._new: Deque[Tuple[int, Stream]] = collections.deque()
        self._said: Deque[bytes] = collections.deque(maxlen=1000)
        self._closing: Optional[float] = None

    def pipe(self, prefix: str, tail: Tail, error: bool) -> int:
        """A file descriptor for a child to write to; the caller closes its copy."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            fcntl.fcntl(write, SET_PIPE_SIZE, PIPE)
        except OSError:
            pass  # the limit of this user's pipes is reached: the usual size will do
        tail.open += 1
        self._new.append((read, Stream(prefix.encode(), tail, error)))
        self._wake()
        return write

    def say(self, text: str) -> None:
        """A line of the supervisor's own. Never blocks; if nobody reads the log, the oldest lines are lost."""
        for line in text.splitlines() or [""]:
            self._said.append(OWN + line.encode("utf-8", "replace") + b"\n")
        self._wake()

    def close(self, timeout: float) -> None:
        """Write what is there already, wait at most `timeout` seconds for it."""
        self._closing = time.monotonic() + timeout
        self._wake()
        self.join(timeout)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # it is awake

    def run(self) -> None:
        """The thread: until closed."""
        while True:
            ready = self._selector.select(0 if self._closing is not None else None)
            progressed = bool(self._said or self._new)
            while self._said:
                self._write(self._said.popleft())
            while self._new:
                read, stream = self._new.popleft()
                self._selector.register(read, selectors.EVENT_READ, stream)
            for key, _ in ready:
                if key.data is None:
                    os.read(self._wake_read, 4096)
                else:
                    progressed = True
                    self._read(key.fd, key.data)
            if self._closing is not None and (not progressed or time.monotonic() > self._closing):
                return

    def _read(self, fd: int, stream: Stream) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if data:
            self._write(stream.feed(data))
            return
        self._selector.unregister(fd)
        os.close(fd)
        self._write(stream.end())
        stream.tail.open -= 1
        self._on_end()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view):]
            except BlockingIOError:  # somebody made our stdout non-blocking: wait until it takes more
                with selectors.DefaultSelector() as writable:
                    writable.register(self._out, selectors.EVENT_WRITE)
                    writable.select(1.0)
            except OSError:
                return  # nobody can ever read it
