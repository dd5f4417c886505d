"""Programs in the control plane's own network, as in a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from cluster.builtin.control import ControlPlane
from cluster.ledger import Ledger
from cluster.state import load


@dataclass(frozen=True)
class Inside:
    """A way to the API server without the relay of the host's loopback, one Python process for all of its clients: what
    it takes for each pod is as much as the operator."""

    words: tuple[str, ...]  # to put before a command
    kubeconfig: Path


def inside(cluster: Cluster, folder: Path) -> Inside:
    """Of a built-in cluster; the kubeconfig is written into `folder`."""
    state = load(cluster.name)
    assert state is not None, f"cluster {cluster.name} is up, but not on record"
    plane = ControlPlane(state.folder, Ledger(state.folder / "ledger"), state.port)
    kubeconfig = plane.credentials.kubeconfig("admin", path=folder / "inside.kubeconfig")
    return Inside(("nsenter", "-t", str(plane.machine.init), "-n", "--"), kubeconfig)
