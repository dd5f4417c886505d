"""The process of this pod's side of a check in pairs (collective.py): started, bounded, judged by how it ends."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import time
from typing import Callable, Mapping, Optional, Sequence

from supervisor import checks
from supervisor.events import Checked, CheckPair, Event, PairChecked, named
from supervisor.logs import Logs, Tail
from supervisor.torchstore import interpreter

MARGIN = 2.0  # s before it is killed in which it may say by itself what it waited for
LAST_WORDS = 1.0  # s that its output may still come after its end


class PairCheck:
    """At most one at a time. Its process is a stray among the ranks' processes: KillRanks ends it."""

    def __init__(self, program: Sequence[str], environment: Mapping[str, str], scratch: str, logs: Logs,
                 post: Callable[[Event], None]) -> None:
        self._interpreter = interpreter(program)
        self._environment = dict(environment)
        self._file = os.path.join(scratch, "collective.py")
        self._logs = logs
        self._post = post
        self._order: Optional[CheckPair] = None
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._tail = Tail()
        self._kill_at = 0.0
        self._ended: Optional[int] = None  # its status, while its last words are waited for
        self._tell_at = 0.0

    def start(self, action: CheckPair) -> None:
        """Start it; PairChecked follows."""
        order, self._order, self._tail, self._ended = action.order, action, Tail(), None
        name = f"check/{named(action.run)}/{order.round}/{self._pair(order.peer, order.rank)}"
        streams = []
        try:
            with open(self._file, "wb") as file:
                file.write(pkgutil.get_data("supervisor", "collective.py") or b"")
            streams = [self._logs.pipe("[check] ", self._tail, error) for error in (False, True)]
            self._child = subprocess.Popen(
                [self._interpreter, self._file, order.host, str(order.port), name, str(order.rank),
                 str(checks.CHECK_SECONDS - MARGIN)],
                stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1], start_new_session=True,
                env=self._environment)
            self._kill_at = time.monotonic() + checks.CHECK_SECONDS
        except OSError as problem:
            self._tell(False, f"the check cannot be started: {problem}")
        finally:
            for stream in streams:
                os.close(stream)

    def _pair(self, peer: int, rank: int) -> str:
        """The name of the pair, the same on both sides: index of rank 0, then of rank 1."""
        me = self._environment.get("TRAINYARD_INDEX", "")
        return f"{me}-{peer}" if rank == 0 else f"{peer}-{me}"

    def deadline(self) -> Optional[float]:
        """When step() is due."""
        if self._ended is not None:
            return self._tell_at
        return self._kill_at if self._child is not None and self._kill_at else None

    def step(self) -> None:
        """End one that takes too long; tell of one that has ended."""
        now = time.monotonic()
        if self._child is not None and self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            os.killpg(self._child.pid, signal.SIGKILL)  # not reaped before ended(): the pid is still its own
        if self._ended is not None and (self._tail.open <= 0 or now >= self._tell_at):
            status, self._ended = self._ended, None
            _, errors = self._tail.read()
            self._tell(status == 0, "" if status == 0 else self._why(status, errors[-1] if errors else ""))

    def _why(self, status: int, last: str) -> str:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL and not self._kill_at:
                return f"it did not end within {checks.CHECK_SECONDS:.0f} s"
            return f"ended by signal {number}" + (f": {last}" if last else "")
        return last or f"exit code {os.WEXITSTATUS(status)}"

    def ended(self, pid: int, status: int) -> None:
        """A child was reaped."""
        if self._child is not None and pid == self._child.pid:
            self._child.returncode = status
            self._child = None
            self._ended, self._tell_at = status, time.monotonic() + LAST_WORDS

    def _tell(self, passed: bool, why: str) -> None:
        assert self._order is not None
        self._post(PairChecked(self._order.run, Checked(self._order.order.round, passed, why)))
