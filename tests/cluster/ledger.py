"""What a cluster has made on this machine, written down before it is made.

The ledger is a file of JSON lines, appended to. After a kill -9 at any point, everything that exists is in it (an
entry may also name something that was never made: cleaning that is a no-op). Processes are identified by pid, start
time and boot, so that a number that the kernel gave to somebody else since is left alone. Nothing is ever found by
its name.

Mounts and network namespaces need no entries of their own: they live inside the namespaces of recorded processes and
go with them.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError

Kind = Literal["process", "cgroup"]

# A killed namespace needs time to tear down its containers; more than this means a process stuck in the kernel.
_DEATH_SECONDS = 10.0

# What pidfd_open says of a number that no process has: one that is being reaped may be EINVAL, and a thread of another
# process may have the number by now, EINVAL or ENOENT by the kernel's version.
_NO_PROCESS = (errno.ESRCH, errno.ENOENT, errno.EINVAL)


@dataclass(frozen=True)
class Entry:
    """One made thing. ``role`` says what it is ("kubelet"), ``node`` whose it is ("" for the control plane)."""

    kind: Kind
    role: str
    node: str = ""
    pid: int = 0
    start: int = 0
    boot: str = ""
    path: str = ""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def process_entry(role: str, pid: int, node: str = "") -> Entry:
    """An entry for a living process. Raises ClusterError if it has died already."""
    start = start_time(pid)
    if start is None:
        raise ClusterError(f"{role} {node}".strip() + " ended before it started its work")
    return Entry("process", role, node, pid=pid, start=start, boot=boot_id())


def alive(entry: Entry) -> bool:
    return entry.boot == boot_id() and start_time(entry.pid) == entry.start


def pidfd(pid: int) -> int:
    """A file descriptor of the process. Raises ProcessLookupError if there is none."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from error


def send(entry: Entry, signum: signal.Signals) -> bool:
    """Signal exactly the recorded process. False if it no longer exists."""
    try:
        handle = pidfd(entry.pid)
    except ProcessLookupError:
        return False
    try:
        # The pidfd pins the process, so the identity checked now is the one that gets the signal.
        if not alive(entry):
            return False
        signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(entries: list[Entry], seconds: float = _DEATH_SECONDS) -> list[Entry]:
    """Wait for the processes to end; returns those still alive after ``seconds``."""
    return _wait_while(alive, entries, seconds)


def wait_stopped(entries: list[Entry], seconds: float = _DEATH_SECONDS) -> list[Entry]:
    """Wait until no thread of the processes does anything, for each takes SIGSTOP on its own; returns those of which
    one still did after ``seconds``."""
    return _wait_while(_runs, entries, seconds)


def _wait_while(holds: Callable[[Entry], bool], entries: list[Entry], seconds: float) -> list[Entry]:
    """Those of which it still holds after ``seconds``."""
    deadline = time.monotonic() + seconds
    left = [entry for entry in entries if holds(entry)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [entry for entry in left if holds(entry)]
    return left


def _runs(entry: Entry) -> bool:
    """A thread or a process that has ended does nothing either."""
    for thread in Path(f"/proc/{entry.pid}/task").glob("*/stat"):
        try:
            state = thread.read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "TtZX":
            return True
    return False


class Ledger:
    """The record of one cluster. Safe to share between threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> Entry:
        """Write the entry down; on return it survives the death of this process."""
        # The newline comes first as well: a line torn by a crash must not swallow this one.
        line = "\n" + json.dumps({k: v for k, v in asdict(entry).items() if v}) + "\n"
        with self._lock:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        return entry

    def entries(self) -> list[Entry]:
        """All entries, oldest first. A line torn by a crash is skipped: what it meant to record was not yet made."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def processes(self, role: str | None = None, node: str | None = None) -> list[Entry]:
        """Living recorded processes of this role and node."""
        return [
            entry
            for entry in self.entries()
            if entry.kind == "process" and role in (None, entry.role) and node in (None, entry.node) and alive(entry)
        ]

    def forget(self, matches: Callable[[Entry], bool]) -> None:
        """Drop entries whose things are gone. The new file replaces the old one in a single step."""
        with self._lock:
            kept = [entry for entry in self.entries() if not matches(entry)]
            fresh = self.path.with_suffix(".new")
            fresh.write_text(
                "".join(json.dumps({k: v for k, v in asdict(entry).items() if v}) + "\n" for entry in kept)
            )
            fresh.replace(self.path)


def kill_all(entries: list[Entry]) -> None:
    """SIGKILL the recorded processes and wait until they are gone."""
    processes = [entry for entry in entries if entry.kind == "process"]
    for entry in reversed(processes):
        send(entry, signal.SIGKILL)
    left = wait_gone(processes)
    if left:
        names = ", ".join(f"{entry.role} (pid {entry.pid})" for entry in left)
        raise ClusterError(
            f"killed, but still there after {_DEATH_SECONDS:.0f} s: {names}; "
            f"look at /proc/<pid>/stack for what the kernel waits for, then run `down` again"
        )
