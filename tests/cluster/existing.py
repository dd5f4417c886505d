"""A cluster that somebody else runs: used as it is, never changed beyond what tests apply to it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import NoReturn

from cluster import gotools
from cluster.errors import ClusterError
from cluster.images.layout import Layout
from cluster.launch import run
from cluster.progress import Progress
from cluster.state import State


def create(name: str, progress: Progress) -> State:
    """Check that the cluster of KUBECONFIG answers, and remember it under ``name``."""
    kubeconfig = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not Path(kubeconfig).is_file():
        raise ClusterError(f"no cluster to use: KUBECONFIG is {kubeconfig!r}, and there is no such file")
    programs = gotools.binaries(progress, gotools.CLIENTS)
    with progress.step(f"asking the cluster of {kubeconfig}"):
        answer = run(
            [programs / "kubectl", "--kubeconfig", kubeconfig, "get", "nodes", "-o", "json"], what="kubectl get nodes"
        )
    nodes = [node["metadata"]["name"] for node in json.loads(answer)["items"]]
    state = State(name, "existing", kubeconfig, phase="ready", nodes=nodes, programs=str(programs))
    state.save()
    return state


class Levers:
    """None: another's nodes are not ours to break, and images reach them through a registry."""

    capabilities: frozenset[str] = frozenset()

    def cut_network(self, name: str) -> None:
        _refuse("cut the network of its nodes")

    def mend_network(self, name: str) -> None:
        _refuse("mend the network of its nodes")

    def signal(self, service: str, name: str, signum: signal.Signals) -> None:
        _refuse(f"signal its {service}")

    def start(self, service: str, name: str) -> None:
        _refuse(f"start its {service}")

    def add_node(self) -> str:
        _refuse("add a node")

    def remove_node(self, name: str) -> None:
        _refuse("remove a node")

    def load(self, layout: Layout, name: str, images: list[str]) -> int:
        _refuse("load images into its nodes: push them to a registry that it pulls from")

    def run_on(self, name: str, argv: list[str]) -> str:
        _refuse("run commands on its nodes")

    def describe(self) -> list[tuple[str, str, str]]:
        return []


def _refuse(what: str) -> NoReturn:
    raise ClusterError(f"this is an existing cluster (KUBECONFIG), so trainyard's tests cannot {what}")
