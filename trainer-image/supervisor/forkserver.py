"""The supervisor's side of the process that ranks are forked from (preload.py).

It is started when the pod starts, so that its imports are over when the gang is complete. Without it, and whenever it
fails, ranks are started as any program is."""

from __future__ import annotations

import array
import contextlib
import json
import os
import pkgutil
import re
import signal
import socket
import subprocess
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from supervisor.logs import Logs, Tail

IMPORT_WITHIN = 600.0  # s that an order waits for the imports: on a slow disk a rank would take as long for them
FORK_WITHIN = 5.0  # s that forks may take on a busy machine; tens of milliseconds are usual
DEATHS = 3  # without a rank forked in between, after which ranks are started without it for good
RANKS = 120  # a message carries at most 253 descriptors
PYTHON = re.compile(r"^python(3(\.\d+)?)?$")


class Fork(NamedTuple):
    """One rank that is asked for."""

    local: int
    name: str
    environment: Dict[str, str]  # what it has beside the server's own
    streams: Tuple[int, int]  # stdout and stderr; they stay the caller's


class Forked(NamedTuple):
    """What came of an order: all pids by local rank, or why there are none."""

    pids: Dict[int, int]
    problem: str = ""


def usable(program: Sequence[str]) -> str:
    """Why this program cannot be a fork, or an empty string: it has to be Python, with a script, -m or -c. `-u` is the
    only other option: an interpreter's options hold for the whole of its life."""
    if not program or not PYTHON.match(os.path.basename(program[0])):
        return "the command does not begin with python"
    rest = arguments(program)
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-m", "-c")) or (rest[0][0] == "-" and len(rest) < 2):
        return f"the command is not python with a script, -m MODULE or -c CODE, but {' '.join(program[:3])!r}"
    return ""


def arguments(program: Sequence[str]) -> List[str]:
    """What follows the interpreter and `-u`, which PYTHONUNBUFFERED says as well."""
    rest = list(program[1:])
    while rest[:1] == ["-u"]:
        rest.pop(0)
    return rest


class ForkServer:
    """Keeps one server process, and at most one order at a time."""

    def __init__(self, program: Sequence[str], modules: str, environment: Mapping[str, str], scratch: str,
                 logs: Logs) -> None:
        self._program = list(program)
        self._modules = modules
        self._environment = dict(environment)
        self._file = os.path.join(scratch, "preload.py")
        self._logs = logs
        self._tail = Tail()
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._link: Optional[socket.socket] = None
        self._gate: Optional[int] = None  # to the ranks of the order that is under way
        self._ready = False
        self._deaths = 0
        self._dying: Set[int] = set()
        self._order: List[Fork] = []
        self._number = 0  # of the order
        self._sent = False
        self._pids: Dict[int, int] = {}
        self._due: Optional[float] = None
        self._began = 0.0
        self._out = not modules
        why = usable(program) if modules else ""
        if why:
            self._aside(why)

    # The process ------------------------------------------------------------------------------------------------------

    @property
    def link(self) -> Optional[socket.socket]:
        """What to select for reading, if there is a server; another object for every server."""
        return self._link

    @property
    def settled(self) -> bool:
        """Whether a rank would not have to wait for imports that go on: they are over, or there is to be no server."""
        return self._ready or self._out

    def pids(self) -> Set[int]:
        """Children that are not reaped yet."""
        return self._dying | ({self._child.pid} if self._child is not None else set())

    def open(self) -> None:
        """Start the server, if there is to be one."""
        if self._out or self._child is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends: List[int] = []
        try:
            source = pkgutil.get_data("supervisor", "preload.py")
            with open(self._file, "wb") as file:
                file.write(source or b"")
            ends = [self._logs.pipe("[preload] ", self._tail, error) for error in (False, True)]
            self._child = subprocess.Popen(
                [self._program[0], self._file, str(theirs.fileno()), self._modules, "--", *arguments(self._program)],
                stdin=subprocess.DEVNULL, stdout=ends[0], stderr=ends[1], pass_fds=[theirs.fileno()],
                start_new_session=True, env=self._environment)
            self._link, self._ready, self._began = ours, False, time.monotonic()
            ours.setblocking(False)
        except OSError as error:
            ours.close()
            self._aside(f"cannot start it: {error}")
        finally:
            theirs.close()
            for end in ends:
                os.close(end)

    def _aside(self, why: str) -> None:
        self._out = True
        self._logs.say(f"nothing is imported ahead ({why}); ranks are started one by one")

    def close(self) -> None:
        """End the server; it is reaped by the loop, like every child."""
        self.cancel()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._child is not None:
            self._child.kill()
            self._child.returncode = -signal.SIGKILL
            self._dying.add(self._child.pid)
            self._child = None

    def ended(self, pid: int, status: int) -> Optional[Forked]:
        """A child was reaped. If it was the server, what was ordered of it comes to nothing; another one is started."""
        if pid in self._dying:
            self._dying.discard(pid)
            return None
        if self._child is None or pid != self._child.pid:
            return None
        self._child.returncode = status
        self._child = None
        said = self._read_all()  # it may have said why
        if self._link is not None:
            self._link.close()
            self._link = None
        if not self._out:
            self._deaths += 1
            self._logs.say(f"the process with the imports ended unexpectedly (status {status})")
            if self._deaths >= DEATHS:
                self._aside(f"it ended {DEATHS} times")
            self.open()
        return said if said is not None else self._fail("the process with the imports ended")

    # Orders -----------------------------------------------------------------------------------------------------------

    def fork(self, order: List[Fork]) -> bool:
        """Ask for ranks; False if there is no server. The answer comes from read(), ended() or step()."""
        self.cancel()
        if self._link is None or self._out or len(order) > RANKS:
            return False
        self._order = order
        self._due = time.monotonic() + IMPORT_WITHIN
        return self._send() if self._ready else True

    def _send(self) -> bool:
        assert self._link is not None
        read, self._gate = os.pipe()
        self._number += 1
        ranks = [{"local": one.local, "name": one.name, "environment": one.environment} for one in self._order]
        content = {"number": self._number, "ranks": ranks}
        descriptors = array.array("i", [read, *(stream for one in self._order for stream in one.streams)])
        try:
            self._link.sendmsg([json.dumps(content).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError as error:
            self._logs.say(f"the process with the imports takes no order: {error}")
            self.cancel()
            return False
        finally:
            os.close(read)
        self._sent, self._due = True, time.monotonic() + FORK_WITHIN
        return True

    def go(self) -> None:
        """Let the ranks of the last order run."""
        assert self._gate is not None
        with contextlib.suppress(BrokenPipeError):  # all of them were killed while they waited
            os.write(self._gate, bytes(len(self._order)))
        self._deaths = 0
        self.cancel()

    def cancel(self) -> None:
        """Forget the order; ranks that were not told to go end by themselves."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None
        self._order, self._pids, self._due, self._sent = [], {}, None, False

    def deadline(self) -> Optional[float]:
        """When step() is due."""
        return self._due

    def step(self) -> Optional[Forked]:
        """A server that does not answer in time is replaced."""
        if self._due is None or time.monotonic() < self._due:
            return None
        self._logs.say("the process with the imports does not answer: it is replaced")
        self._deaths += 1
        failed = self._fail("the process with the imports does not answer")
        self.close()
        if self._deaths >= DEATHS:
            self._aside(f"it failed {DEATHS} times")
        self.open()
        return failed

    def _fail(self, why: str) -> Optional[Forked]:
        if not self._order:
            return None
        self.cancel()
        return Forked({}, why)

    def read(self) -> Optional[Forked]:
        """The server or a rank of it has said something."""
        return self._read_all()

    def _read_all(self) -> Optional[Forked]:
        done: Optional[Forked] = None
        while self._link is not None and done is None:
            try:
                message = self._link.recv(65536)
            except OSError:
                return None  # no more for now
            if not message:
                self._link.close()  # it is about to be reaped
                self._link = None
                return None
            done = self._told(json.loads(message))
        return done

    def _told(self, what: Dict[str, Any]) -> Optional[Forked]:
        if "aside" in what:
            self._aside(str(what["aside"]))
            return self._fail("it stepped aside")
        if "ready" in what:
            self._ready = True
            self._logs.say(f"imported ahead in {time.monotonic() - self._began:.1f} s: {self._modules}")
            return None if not self._order or self._send() else Forked({}, "no order was taken")
        if not self._sent or what["number"] != self._number:
            return None  # of an order that was given up
        if "failed" in what:
            return self._fail(str(what["failed"]))
        self._pids[int(what["local"])] = int(what["pid"])
        if len(self._pids) < len(self._order):
            return None
        self._due = None
        return Forked(dict(self._pids))
