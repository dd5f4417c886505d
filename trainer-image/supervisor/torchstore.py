"""torch's TCPStore in a process of its own on the master's pod.

No rank hosts it, so the death of rank 0 is like any other. The listening socket is made here and handed over: ranks may
connect while the child still imports torch.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Callable, Optional, Sequence, Set

from supervisor.events import Run, StoreReady

CHILD = r"""
import array, importlib.util, json, signal, socket, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
link = socket.socket(fileno=int(sys.argv[1]))
def say(**what):
    link.sendall((json.dumps(what) + "\n").encode())
if importlib.util.find_spec("torch") is None:
    say(torch=False)
    sys.exit(0)
say(torch=True)
from torch.distributed import TCPStore
store = None
while True:
    message, received, _, _ = link.recvmsg(4096, socket.CMSG_SPACE(4))
    if not message:
        break
    fd = array.array("i", received[0][2])[0]
    order = json.loads(message)
    store = None
    store = TCPStore(order["host"], order["port"], None, True, wait_for_workers=False, master_listen_fd=fd)
    say(port=store.port)
"""


class TorchStore:
    """Hosts one TCPStore at a time. The child is started when the pod becomes master and imports torch once."""

    def __init__(self, pod_ip: str, program: Sequence[str], free_port: Callable[[], int],
                 say: Callable[[str], None], wanted: bool = True) -> None:
        self._wanted = wanted
        self._six = ":" in pod_ip
        self._interpreter = interpreter(program)
        self._free_port = free_port
        self._say = say
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._link: Optional[socket.socket] = None
        self._have_torch: Optional[bool] = None  # not known before the child said so
        self._broken = False
        self._run: Optional[Run] = None
        self._waiting: Optional[Run] = None
        self._dying: Set[int] = set()
        self._buffer = b""

    @property
    def link(self) -> Optional[socket.socket]:
        """What to select for reading, if there is a child; another object for every child."""
        return self._link

    def pids(self) -> Set[int]:
        """Children that are not reaped yet."""
        return self._dying | ({self._child.pid} if self._child is not None else set())

    def open(self) -> None:
        """Start the child, unless nobody wants it or torch is known to be absent."""
        if not self._wanted or self._child is not None or self._have_torch is False or self._broken:
            return
        ours, theirs = socket.socketpair()
        try:
            self._child = subprocess.Popen([self._interpreter, "-c", CHILD, str(theirs.fileno())],
                                           stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)
            self._link = ours
        except OSError as error:
            self._say(f"cannot start {self._interpreter} for torch's store: {error}; rank 0 makes it itself")
            self._have_torch = False
            ours.close()
        finally:
            theirs.close()

    def prepare(self, run: Run) -> Optional[StoreReady]:
        """Make the store of this run; the answer may come later, from read()."""
        self._run = run
        self.open()
        if self._child is None:
            return StoreReady(run, self._free_port(), False)
        if self._have_torch is None:
            self._waiting = run
            return None
        if not self._have_torch or self._link is None:  # it has told so, or has just died, and is not reaped yet
            return StoreReady(run, self._free_port(), False)
        return self._hand_over(run)

    def _hand_over(self, run: Run) -> StoreReady:
        assert self._link is not None
        host = "::" if self._six else "0.0.0.0"
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if self._six else socket.AF_INET,
                                        backlog=4096, dualstack_ipv6=self._six and socket.has_dualstack_ipv6())
        port = int(listener.getsockname()[1])
        order = json.dumps({"host": "::1" if self._six else "127.0.0.1", "port": port}).encode()
        try:
            self._link.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))])
        except OSError:
            return StoreReady(run, self._free_port(), False)  # it has just died; ended() says so
        finally:
            listener.close()
        return StoreReady(run, port, True)

    def read(self) -> Optional[StoreReady]:
        """The child has said something."""
        assert self._link is not None
        try:
            data = self._link.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._unlink()  # it is about to be reaped
            return None
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "torch" in told:
                self._have_torch = bool(told["torch"])
        if self._have_torch is None or self._waiting is None:
            return None
        if not self._have_torch:
            self._say(f"no torch in {self._interpreter}: the program's rank 0 makes the meeting point itself")
            run, self._waiting = self._waiting, None
            return StoreReady(run, self._free_port(), False)
        run, self._waiting = self._waiting, None
        return self._hand_over(run)

    def _unlink(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self._buffer = b""

    def ended(self, pid: int, status: int) -> Optional[StoreReady]:
        """A child was reaped. If it had the store of the current run, that run gets another one."""
        if pid in self._dying:
            self._dying.discard(pid)
            return None
        if self._child is None or pid != self._child.pid:
            return None
        self._child.returncode = status
        self._child = None
        self._unlink()
        self._waiting = None
        if self._have_torch is False:
            return None
        killed = os.WIFSIGNALED(status)
        self._broken = self._broken or not killed  # torch itself does not work
        self._say(f"torch's store ended unexpectedly (status {status})"
                  + ("" if killed else "; from now on rank 0 makes it itself"))
        self._have_torch = None
        return self.prepare(self._run) if self._run is not None else None

    def close(self) -> None:
        """End the child, and the store with it."""
        if self._child is not None:
            self._child.kill()
            self._child.returncode = -signal.SIGKILL  # reaped by the loop, like every child
            self._dying.add(self._child.pid)
            self._child = None
        self._unlink()
        self._have_torch = self._run = self._waiting = None


def interpreter(program: Sequence[str]) -> str:
    """The Python that the program runs in, if it says so; it is the one that has torch."""
    name = os.path.basename(program[0]) if program else ""
    return program[0] if name.startswith(("python", "pypy")) else sys.executable or "python3"


def free_port(six: bool = False) -> int:
    """A port that nobody has now."""
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
