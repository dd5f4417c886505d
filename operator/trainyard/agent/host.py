"""The node's own file system, in which the driver and its tools are: the agent's container has none of them.

The node's root is mounted into the container as a whole and the tools run inside it (chroot): they find their libraries
and files where the driver has put them, and a node without a driver is left as it is, where single mounts of what is
not there would leave empty folders behind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MOST_LINKS = 40  # as the kernel has it


@dataclass(frozen=True, slots=True)
class Host:
    """Where things are on the node. `root` is where this process sees the node's root."""

    root: Path = Path("/")
    npu_smi: str = "/usr/local/bin/npu-smi"
    driver: str = "/usr/local/Ascend/driver"
    dcmi: str = "/usr/local/dcmi"
    hccn_conf: str = "/etc/hccn.conf"

    def find(self, path: str) -> Path:
        """Where this process sees a path of the node: symbolic links lead where they would on the node."""
        parts, at, links = _parts(path), self.root, 0
        while parts:
            part = parts.pop()
            step = at / part
            if part == "..":
                at = at if at == self.root else at.parent
            elif links < _MOST_LINKS and step.is_symlink():
                links, target = links + 1, os.readlink(step)
                at = self.root if target.startswith("/") else at
                parts += _parts(target)
            else:
                at = step
        return at

    def has(self, path: str) -> bool:
        """Whether the node has this."""
        return self.find(path).exists()

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        """What runs a program of the node."""
        return (program, *arguments) if self.root == Path("/") else ("chroot", str(self.root), program, *arguments)


def _parts(path: str) -> list[str]:
    """The last first."""
    return [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
