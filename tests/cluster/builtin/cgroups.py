"""Making and removing the cluster's cgroups, for version 1 (a tree a controller) and version 2 (one tree)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError


@dataclass(frozen=True)
class Hierarchy:
    root: Path
    unified: bool


def hierarchies() -> list[Hierarchy]:
    """Every mounted cgroup tree, the mount point and its version."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        kind = right.split()[0]
        if kind in ("cgroup", "cgroup2"):
            root = Path(left.split()[4])
            found[root] = Hierarchy(root, kind == "cgroup2")
    if not found:
        raise ClusterError("no cgroup file system is mounted; kubelet needs one at /sys/fs/cgroup")
    return list(found.values())


def make(path: str) -> None:
    """Make the cgroup in every tree, its parents included. Its entry in the ledger is the caller's business."""
    for tree in hierarchies():
        current = tree.root
        for part in path.strip("/").split("/"):
            if tree.unified:
                _delegate(current)
            child = current / part
            child.mkdir(exist_ok=True)
            if not tree.unified:
                _inherit_cpuset(current, child)
            current = child
        if tree.unified:
            _delegate(current)


def _inherit_cpuset(parent: Path, child: Path) -> None:
    """A new version 1 cpuset is empty and admits no process until it is filled."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        source, target = parent / name, child / name
        if source.exists() and not target.read_text().strip():
            target.write_text(source.read_text())


def _delegate(group: Path) -> None:
    """Let children of a version 2 cgroup use every controller that it has."""
    for controller in (group / "cgroup.controllers").read_text().split():
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # e.g. a controller with real-time limits set; kubelet names the ones that it misses


def remove(path: str, seconds: float = 5.0) -> None:
    """Remove the cgroup and all below it from every tree. Its processes must be dead or dying."""
    deadline = time.monotonic() + seconds
    for tree in hierarchies():
        top = tree.root / path.strip("/")
        while top.is_dir():
            _remove_below(top)
            if top.is_dir():
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"cgroup {top} cannot be removed: processes are left in it (see its cgroup.procs)"
                    )
                time.sleep(0.02)


def _remove_below(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # busy while its last process is being torn down; the caller tries again
