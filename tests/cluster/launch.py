"""Starting long-lived processes so that each is on record before it does anything.

A new process first waits at a gate, a pipe from us. We write its pid and start time into the ledger, then open the
gate. If we die in between, the pipe closes and the process ends by itself: there is no moment at which an unrecorded
process of ours goes on living.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.ledger import Entry, Ledger, process_entry, start_time

ALL_NAMESPACES = ("-n", "-m", "-u", "-i", "-p")
_GATE = ["/bin/sh", "-c", 'IFS= read -r go || exit 1; exec "$@" </dev/null', "gate"]

# A daemon gets no more of the caller's environment than it needs, so that clusters behave alike everywhere.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

_LIVING: list[subprocess.Popen[bytes]] = []


def start(
    argv: Sequence[str | Path],
    *,
    ledger: Ledger,
    role: str,
    log: Path,
    node: str = "",
    inside: int | None = None,
    namespaces: Sequence[str] = ALL_NAMESPACES,
    keep: Sequence[int] = (),
) -> Entry:
    """Start ``argv`` in the background, output appended to ``log``, and return its ledger entry.

    ``inside`` is a pid whose ``namespaces`` the process enters; the pid namespace must be among them, so that it ends
    with them. ``keep`` are file descriptors it inherits. Raises ClusterError if it does not come up.
    """
    _LIVING[:] = [child for child in _LIVING if child.poll() is None]
    prefix: list[str] = []
    if inside is not None:
        prefix = ["nsenter", "-t", str(inside), *namespaces, "--"]
    gate_read, gate_write = os.pipe()
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*prefix, *_GATE, *map(str, argv)],
                stdin=gate_read,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
                pass_fds=tuple(keep),
            )
        _LIVING.append(child)
        pid = child.pid
        if inside is not None:
            # nsenter stays outside of the pid namespace and forks; its child is the process we mean.
            ledger.add(process_entry("nsenter:" + role, pid, node))
            pid = only_child(pid)
        entry = ledger.add(process_entry(role, pid, node))
        os.write(gate_write, b"go\n")
        return entry
    finally:
        os.close(gate_read)
        os.close(gate_write)


def only_child(pid: int, seconds: float = 5.0) -> int:
    """The pid of the process's first child, waiting for it to be forked."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        children = _children(pid)
        if children:
            return children[0]
        if start_time(pid) is None:
            break
        time.sleep(0.002)
    raise ClusterError(f"process {pid} ended or did not fork within {seconds:.0f} s; its log tells why")


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(word) for word in listing.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return _children_by_scan(pid)


def _children_by_scan(pid: int) -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(text[text.rindex(")") + 2 :].split()[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def run(argv: Sequence[str | Path], *, stdin: str | None = None, what: str = "", seconds: float = 60) -> str:
    """Run a command to its end and return its standard output; ClusterError with its standard error if it fails."""
    name = what or " ".join(map(str, argv[:3]))
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{name}: program {error.filename} not found") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{name}: no result within {seconds:.0f} s") from error
    if done.returncode != 0:
        raise ClusterError(f"{name} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def run_in(
    pid: int, argv: Sequence[str | Path], *, stdin: str | None = None, what: str = "", seconds: float = 60
) -> str:
    """``run`` inside the namespaces of ``pid``."""
    return run(["nsenter", "-t", str(pid), *ALL_NAMESPACES, "--", *argv], stdin=stdin, what=what, seconds=seconds)


def run_in_network(pid: int, argv: Sequence[str | Path], *, stdin: str | None = None) -> str:
    """``run`` with the network of ``pid`` but the caller's files and pids."""
    return run(["nsenter", "-t", str(pid), "-n", "--", *argv], stdin=stdin)
