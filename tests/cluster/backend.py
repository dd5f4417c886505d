"""What a provider of clusters offers to the rest of the package."""

from __future__ import annotations

import signal
from typing import Protocol

from cluster.images.layout import Layout


class Backend(Protocol):
    """A running cluster's levers. ``capabilities`` says which of them work; the others raise ClusterError.

    A service is "kubelet", "containerd" or "kube-proxy" of a node, or "apiserver", "scheduler" or
    "controller-manager" with node "".
    """

    capabilities: frozenset[str]

    def cut_network(self, name: str) -> None: ...

    def mend_network(self, name: str) -> None: ...

    def signal(self, service: str, name: str, signum: signal.Signals) -> None: ...

    def start(self, service: str, name: str) -> None: ...

    def add_node(self) -> str: ...

    def remove_node(self, name: str) -> None: ...

    def load(self, layout: Layout, name: str, images: list[str]) -> int: ...

    def run_on(self, name: str, argv: list[str]) -> str: ...

    def describe(self) -> list[tuple[str, str, str]]: ...
