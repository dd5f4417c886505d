"""The copier as the supervisor's child: started with the job's token, started again when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Callable, Mapping, Optional, Set, Tuple

from supervisor.copies import ALIVE, GONE

# The supervisor may run from a packed file, whose modules -m does not find.
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from supervisor.copies.copier import main; " \
        "sys.exit(main(sys.argv[1:]))"
LASTED = 10.0  # s after which an end counts as the first again
ENDS = 3  # in a row, after which it is left
LOOK_EVERY = 2.0  # s between two looks whether it still runs
HANGS_AFTER = 8.0  # s without a sign of life (it gives one every second); generous, for a machine that is very busy


class CopierProcess:
    """Does nothing where `folder` is empty: the job keeps no copies in memory."""

    def __init__(self, folder: str, host: str, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._folder = folder
        self._host = host
        self._environment = dict(environment)
        self._say = say
        self._token = ""
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._started = 0.0
        self._ends = 0
        self._due: Optional[float] = None
        self._sign: Tuple[int, float] = (0, 0.0)  # the newest sign of life, and since when it is the newest

    def pids(self) -> Set[int]:
        """What must not be taken for something that ranks left behind."""
        return {self._child.pid} if self._child is not None else set()

    def open(self, token: str) -> None:
        """Start it, once the token is known."""
        if self._folder and self._child is None and self._ends < ENDS:
            self._token = token
            self._start()

    def deadline(self) -> Optional[float]:
        """When step() is due."""
        return self._due

    def step(self) -> None:
        """A copier that hangs is killed, and so started again: the copies are in files, nothing is lost."""
        now = time.monotonic()
        if self._due is None or self._child is None or now < self._due:
            return
        late, self._due = now - self._due > LOOK_EVERY, now + LOOK_EVERY
        try:
            sign = os.stat(os.path.join(self._folder, ALIVE)).st_mtime_ns
        except OSError:
            sign = 0
        if sign != self._sign[0] or late:  # late: we were stopped ourselves
            self._sign = sign, now
        elif now - self._sign[1] > HANGS_AFTER:
            self._say("the copier hangs; it is replaced")
            self._kill()
            self._sign = sign, now

    def _start(self) -> None:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self._started = time.monotonic()
        self._sign, self._due = (0, self._started), self._started + LOOK_EVERY
        try:
            self._child = subprocess.Popen([sys.executable, "-c", START, package, self._folder, self._host],
                                           stdin=subprocess.PIPE, env=self._environment, start_new_session=True)
            assert self._child.stdin is not None
            self._child.stdin.write(f"{self._token}\n".encode())
            self._child.stdin.close()
        except OSError as error:
            self._say(f"no copies in memory: the copier cannot be started: {error}")

    def ended(self, pid: int) -> None:
        """A child was reaped."""
        if self._child is None or self._child.pid != pid:
            return
        self._child.returncode = 0  # so that subprocess never waits for a pid that may be another's by now
        self._child = None
        self._ends = 1 if time.monotonic() - self._started > LASTED else self._ends + 1
        if self._ends < ENDS:
            self._say("the copier has ended; starting it again")
            self._start()
        else:
            self._due = None
            self._say("the copier keeps ending; no more copies in memory")
            try:
                open(os.path.join(self._folder, GONE), "w").close()
            except OSError:
                pass  # ranks wait a while for it, then

    def close(self) -> None:
        """End it."""
        self._due = None
        self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            try:
                os.kill(self._child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
