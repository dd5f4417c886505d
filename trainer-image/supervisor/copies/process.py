"""The copier as the supervisor's child: started with the job's token, started again when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Callable, Mapping, Optional, Set

# The supervisor may run from a packed file, whose modules -m does not find.
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from supervisor.copies.copier import main; " \
        "sys.exit(main(sys.argv[1:]))"
ALIVE = 10.0  # s after which an end counts as the first again
ENDS = 3  # in a row, after which it is left


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

    def pids(self) -> Set[int]:
        """What must not be taken for something that ranks left behind."""
        return {self._child.pid} if self._child is not None else set()

    def open(self, token: str) -> None:
        """Start it, once the token is known."""
        if self._folder and self._child is None and self._ends < ENDS:
            self._token = token
            self._start()

    def _start(self) -> None:
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self._started = time.monotonic()
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
        self._ends = 1 if time.monotonic() - self._started > ALIVE else self._ends + 1
        if self._ends < ENDS:
            self._say("the copier has ended; starting it again")
            self._start()
        else:
            self._say("the copier keeps ending; no more copies in memory")

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            try:
                os.kill(self._child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
