"""Entry: `python3 supervisor.pyz -- PROGRAM...`."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import tempfile
from typing import List, Mapping, Optional, Tuple

from supervisor import draining
from supervisor.devices import tool_of
from supervisor.events import Member, Terminate
from supervisor.failures import CONFIGURATION
from supervisor.ranktable import VERSIONS, wants_table

SET_CHILD_SUBREAPER = 36  # prctl
FILES = 65536  # descriptors: a master has one for each member, and some container runtimes allow 1024 at first
REQUIRED = ("TRAINYARD_JOB", "TRAINYARD_JOB_UID", "TRAINYARD_NAMESPACE", "TRAINYARD_POD", "TRAINYARD_POD_UID",
            "TRAINYARD_POD_IP", "TRAINYARD_INDEX", "TRAINYARD_INCARNATION", "TRAINYARD_NUM_PROC")
RUNTIMES = ("torch", "mindspore")
SURVIVORS = ("restart", "regroup")  # what ranks of pods that survive do: start anew, or keep their process if they can
USAGE = "usage: supervisor -- PROGRAM [ARGUMENT...]"


def member(environment: Mapping[str, str]) -> Member:
    """This pod's place in the gang; ValueError names what is missing or wrong."""
    missing = [name for name in REQUIRED if not environment.get(name)]
    if missing:
        raise ValueError(f"the environment lacks {', '.join(missing)}; the operator sets them in the pods it makes")

    def whole(name: str, least: int, default: Optional[str] = None) -> int:
        text = environment.get(name) or default or ""
        if not text.isdigit() or int(text) < least:
            raise ValueError(f"{name} is {text!r}, expected a whole number of at least {least}")
        return int(text)

    runtime = environment.get("TRAINYARD_RUNTIME", "torch")
    if runtime not in RUNTIMES:
        raise ValueError(f"TRAINYARD_RUNTIME is {runtime!r}, expected one of {', '.join(RUNTIMES)}")
    version = environment.get("RANK_TABLE_VERSION", "")
    if version not in VERSIONS:
        raise ValueError(f"RANK_TABLE_VERSION is {version!r}, expected one of {', '.join(filter(None, VERSIONS))}")
    survivors = environment.get("TRAINYARD_SURVIVORS") or SURVIVORS[0]
    if survivors not in SURVIVORS:
        raise ValueError(f"TRAINYARD_SURVIVORS is {survivors!r}, expected one of {', '.join(SURVIVORS)}")
    ranks = whole("TRAINYARD_NUM_PROC", 1)
    return Member(
        job=environment["TRAINYARD_JOB_UID"], pod=environment["TRAINYARD_POD"],
        pod_uid=environment["TRAINYARD_POD_UID"], pod_ip=environment["TRAINYARD_POD_IP"],
        index=whole("TRAINYARD_INDEX", 0), incarnation=whole("TRAINYARD_INCARNATION", 1),
        ranks=ranks, grace=float(whole("TRAINYARD_GRACE", 0, "30")),
        runtime=runtime, rank_table=wants_table(environment),
        keeps=survivors == "regroup" and runtime == "torch",
        devices=tool_of(environment, ranks) is not None, drain_by=draining.way(environment),
    )


def program(arguments: List[str]) -> List[str]:
    """The program to run; ValueError if there is none."""
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments:
        raise ValueError(USAGE)
    return arguments


def scratch(environment: Mapping[str, str]) -> str:
    """A fresh folder to write in; the root filesystem may be read-only."""
    tried: List[Tuple[str, OSError]] = []
    for folder in (environment.get("TMPDIR"), "/tmp", "/dev/shm"):
        if folder:
            try:
                return tempfile.mkdtemp(prefix="trainyard-", dir=folder)
            except OSError as error:
                tried.append((folder, error))
    raise ValueError("no folder to write in: " + "; ".join(f"{folder}: {error.strerror}" for folder, error in tried)
                     + "; mount an emptyDir at /tmp")


def adopt_orphans() -> None:
    """Where this is not PID 1 (a shared process namespace), what ranks leave behind still becomes our child."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        pass  # no such call: as PID 1 we need none


def allow_files() -> None:
    """Raise the limit of open files, as far as anybody may; ranks inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # forbidden here: most gangs are small


def main() -> None:
    """Run until the job is over or this pod is told to leave."""
    early: List[int] = []  # the kernel drops signals that PID 1 has no handler for, and what follows takes a moment
    signal.signal(signal.SIGTERM, lambda number, _frame: early.append(number))
    from supervisor.loop import Loop

    try:
        me, command = member(os.environ), program(sys.argv[1:])
        folder = scratch(os.environ)
    except ValueError as error:
        print(f"supervisor: {error}", file=sys.stderr)
        sys.exit(CONFIGURATION)
    adopt_orphans()
    allow_files()
    loop = Loop(me, command, os.environ, folder)
    loop.catch_signals()
    if early:
        loop.post(Terminate())
    code = loop.run()
    sys.stdout.flush()
    os._exit(code)  # the threads may be waiting for the API


if __name__ == "__main__":
    main()
