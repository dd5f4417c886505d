"""Whether the kernel lets as many files be watched as a cluster's processes want to."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from cluster.errors import ClusterError

# Inotify instances, counted on a running cluster.
OF_CONTROL_PLANE = 11  # kube-apiserver and kube-controller-manager
OF_NODE = 8  # kubelet, kube-proxy, containerd
LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


def require_watches(nodes: int) -> None:
    """Raises ClusterError if a control plane and so many nodes would not get their inotify instances: kubelet and
    containerd would end, and all that one would see is nodes that never become Ready."""
    wanted = OF_CONTROL_PLANE + OF_NODE * nodes
    if _left(wanted) < wanted:
        limit = int(LIMIT.read_text())
        raise ClusterError(
            f"a cluster of {nodes} nodes needs {wanted} inotify instances, and of the {limit} that a user may have not "
            f"enough are left (other clusters, editors); try: sudo sysctl fs.inotify.max_user_instances={4 * limit}"
        )


def _left(most: int) -> int:
    """How many more this user may have, counted up to `most`."""
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[int] = []
    try:
        while len(made) < most:
            descriptor = libc.inotify_init1(os.O_CLOEXEC)
            if descriptor < 0:
                if (number := ctypes.get_errno()) != errno.EMFILE:
                    raise OSError(number, f"inotify_init1: {os.strerror(number)}")
                break
            made.append(descriptor)
    finally:
        for descriptor in made:
            os.close(descriptor)
    return len(made)
