"""A small disk that all nodes see, to be filled up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from cluster import Cluster

from chaos.scene import Scene

PATH = "/var/lib/trainyard/small"  # on every node
SIZE = "320m"  # three checkpoints and some room
TOLD_WITHIN = 60.0  # s
# Makes the mount at argv[1] appear at argv[2] of the mount namespace of process argv[3], as the same file system.
_SHOW = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
open_tree, move_mount, here, clone, empty_path, new_mounts = 428, 429, -100, 1, 4, 0x20000
tree = call(libc.syscall(open_tree, here, sys.argv[1].encode(), clone))
call(libc.setns(os.open(f"/proc/{sys.argv[3]}/ns/mnt", os.O_RDONLY), new_mounts))
os.makedirs(sys.argv[2], exist_ok=True)
call(libc.syscall(move_mount, tree, b"", here, sys.argv[2].encode(), empty_path))
"""


class SmallDisk:
    """A file system in memory, of SIZE, at PATH of every node while the context lasts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stack = contextlib.ExitStack()
        self.host = cluster.shared.parent / "small"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.host.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=777", "chaos", str(self.host)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(self.host)], check=True)
            for node in self._cluster.nodes:
                self._show(node)
                stack.callback(self._cluster.run_on, node, "umount", "--lazy", PATH)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _show(self, node: str) -> None:
        space = self._cluster.run_on(node, "readlink", "/proc/self/ns/mnt").strip()
        subprocess.run([sys.executable, "-c", _SHOW, str(self.host), PATH, str(_somebody_in(space))], check=True)


def _somebody_in(space: str) -> int:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/mnt") == space:
                    return int(entry)
    raise LookupError(f"no process in {space}")


def _filler(scene: Scene) -> Path:
    return scene.yard.cluster.shared.parent / "small" / "filler"


def fill(scene: Scene) -> float:
    """Not a byte is left on the small disk."""
    at = time.time()
    with contextlib.suppress(OSError), _filler(scene).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    return at


def saved_again(scene: Scene) -> None:
    """The job says that saving failed, goes on, and saves again once there is room."""
    failed = "CheckpointFailed"
    scene.wait(f"event {failed}", lambda: any(each["reason"] == failed for each in scene.job.events()), TOLD_WITHIN)
    durable = scene.job.status()["checkpoint"]["durableStep"]
    step = scene.journal.step
    _filler(scene).unlink()
    assert step > durable
    scene.wait("checkpoint after that", lambda: scene.job.status()["checkpoint"]["durableStep"] > durable, TOLD_WITHIN)
