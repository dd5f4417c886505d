"""What is done to the memory and the files of a job."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import ledger
from trainer.checkpoint import folder as folders
from trainyard.build.template import MEMORY_PATH

from chaos import processes
from chaos.faults import Fault
from chaos.scene import Scene

HOG = """
import sys, time
kept = []
for _ in range(int(sys.argv[1])):
    kept.append(bytes([1]) * (8 << 20))
    time.sleep(0.05)  # it is ended as soon as the kernel has ended another: two deaths would be another fault
time.sleep(60)
"""
ROOM = 32 << 20  # bytes above what is used, once memory is short
OOM_WITHIN = 20.0  # s
CHECKPOINTS = 60.0  # s that two of them may take
SENT_AFTER = 0.5  # s that a copy takes to reach the other pod, at most


def _cgroup(pid: int) -> tuple[Path, str, str]:
    """Of the container of a process: the folder that limits its memory, and the names of limit and usage."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        unified = Path(f"/sys/fs/cgroup{path}")
        if not controllers and (unified / "memory.max").exists():
            return unified, "memory.max", "memory.current"
    raise LookupError(f"no cgroup limits the memory of process {pid}")


def run_out(whole: bool) -> Fault:
    """The pod of place 1 runs out of memory: another process in its container takes all there is. The kernel kills the
    rank, which has most; with it all others if `whole`, as kubelet asks of it where it can (memory.oom.group). Where it
    cannot, the first process is stopped before and killed right after, which ends all others."""

    def fault(scene: Scene) -> float:
        pod = scene.pod(1)
        rank = scene.rank(1)
        first = next(pid for pid in processes.of_pod(pod["metadata"]["uid"]) if _inner(pid)[1:] == ["1"]
                     and "supervisor" in processes.command(pid))
        group, limit, usage = _cgroup(rank)
        with subprocess.Popen([sys.executable, "-c", HOG, "32"], start_new_session=True) as hog:
            before = (group / limit).read_text()
            if whole:
                processes.send([first], signal.SIGSTOP)
            (group / limit).write_text(str(int((group / usage).read_text()) + ROOM))
            (group / "cgroup.procs").write_text(str(hog.pid))
            try:
                return _death(rank)
            finally:
                hog.kill()
                if whole:
                    processes.send([first], signal.SIGKILL)
                with contextlib.suppress(OSError):  # it went with the container
                    (group / limit).write_text("-1" if "bytes" in limit else before)

    return fault


def _inner(pid: int) -> list[str]:
    """Its pids, from the host's to that of its container."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [line.split()[1], line.split()[-1]]
    return []


def _death(pid: int) -> float:
    """When the process was killed."""
    handle = ledger.pidfd(pid)
    deadline = time.monotonic() + OOM_WITHIN
    try:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LookupError(f"the kernel did not kill process {pid} for want of memory within {OOM_WITHIN:.0f} s")
        return time.time()
    finally:
        os.close(handle)


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def flip_on_disk(scene: Scene) -> float:
    """Both pods are lost, and with them all that is in memory; then a bit of the newest checkpoint turns."""
    root = scene.yard.volume(scene.namespace) / scene.job.name
    scene.wait("two checkpoints", lambda: sum(each.marker is not None for each in folders.scan(root)) > 1, CHECKPOINTS)
    ranks = [scene.rank(place) for place in (0, 1)]
    names = [scene.pod_name(place) for place in (0, 1)]
    at = time.time()
    for name in names:
        scene.job.kill_pod(name)
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            _death(rank)
    newest = next(found for found in folders.scan(root) if found.marker is not None)
    flip(next(iter(sorted(newest.path.glob("*.distcp")))))
    scene.kept["damaged"] = newest.path.name
    return at


def older_was_used(scene: Scene) -> None:
    """The damaged checkpoint was told of and passed over."""
    _, starts = scene.journal.read()
    source, damaged = starts[-1].source, scene.kept["damaged"]
    assert source.startswith("step-"), source
    assert not source.startswith(damaged), f"went on from the damaged {damaged}"
    reasons = {event["reason"] for event in scene.job.events()}
    assert "CheckpointDamaged" in reasons, f"nobody says that {damaged} is damaged: {sorted(reasons)}"


def flip_in_memory(scene: Scene) -> float:
    """A bit of every copy that the pod of place 1 has of its own state turns, then its rank is killed. The rank stands
    still before, so that its newest copy has been sent: only those have a sum."""
    rank = scene.rank(1)
    processes.send([rank], signal.SIGSTOP)
    time.sleep(SENT_AFTER)
    own = list((processes.root(rank) / MEMORY_PATH.lstrip("/") / "own").glob("*/1.*"))
    assert own, "no copies in memory were found"
    for path in own:
        flip(path)
    return processes.send([rank], signal.SIGKILL)


def memory_was_used(scene: Scene) -> None:
    """What was restored came from another pod's memory."""
    _, starts = scene.journal.read()
    assert "copies in memory" in starts[-1].source, starts[-1].source

