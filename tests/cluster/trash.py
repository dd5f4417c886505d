"""Deleting large folders without making anybody wait: moved out of the way at once, deleted behind the scenes.

A node's disk holds tens of thousands of files. The deletion is a plain ``rm`` that nobody waits for longer than asked;
if it is killed, the next one takes up what it left.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from cluster.paths import cache_root


def discard(path: Path, patience: float = 2.0) -> None:
    """Make ``path`` vanish now; wait at most ``patience`` seconds for its space to be free again."""
    folder = cache_root() / "trash"
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        path.rename(folder / f"{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    gone = [str(entry) for entry in folder.iterdir()]
    if not gone:
        return
    # One file system: should anything still be mounted below, it is not ours to delete.
    process = subprocess.Popen(["nice", "-n", "19", "rm", "-rf", "--one-file-system", "--", *gone],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.returncode = 0  # it goes on without us; no warning when this object is collected
