"""When the kernel runs out of memory: which process it ends first, and whether it has ended one."""

from __future__ import annotations

import os
from typing import List

from supervisor.files import read

MOST = 1000  # the largest oom_score_adj


def first_to_go(pid: int) -> None:
    """If memory runs out, the kernel shall end the rank: fork server, copier and supervisor bring it back within a
    second, while without them the pod or its imports begin anew."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as file:
            found = int(file.read())
            file.seek(0)
            file.write(str(min(MOST, found + MOST // 2)))
    except (OSError, ValueError):
        pass  # it has ended, or the kernel does not let us


def oom_kills() -> int:
    """Processes of this container that the kernel has killed for want of memory; 0 where that cannot be read."""
    for path in _memory_files():
        for line in read(path).decode("utf-8", "replace").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return 0


def _memory_files() -> List[str]:
    own, own_v1 = "", ""
    for line in read("/proc/self/cgroup").decode("utf-8", "replace").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            own = path.strip("/")
        if "memory" in controllers.split(","):
            own_v1 = path.strip("/")
    root = "/sys/fs/cgroup"
    return [os.path.join(root, own, "memory.events"), f"{root}/memory.events",
            os.path.join(root, "memory", own_v1, "memory.oom_control"), f"{root}/memory/memory.oom_control"]
