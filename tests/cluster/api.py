"""A cluster for tests and demos, whatever provides it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from cluster import choice, existing, images, kind, state
from cluster.backend import Backend
from cluster.builtin import provider as builtin
from cluster.errors import ClusterError
from cluster.progress import Progress
from cluster.state import State

DEFAULT_NAME = os.environ.get("TRAINYARD_CLUSTER", "dev")


class Cluster:
    """A running cluster.

    Attributes: ``name``; ``provider`` ("builtin", "kind" or "existing"); ``kubeconfig``; ``nodes``, their names;
    ``capabilities``, the levers that work here, to be asked before use:

    ``load`` images, ``cut-network``, ``nodes`` (add and remove), ``shared`` (the folder ``shared`` of the host is
    ``shared_path`` in every node), ``disks`` (the nodes' own, as the host sees
    them), and the services that can be signalled: ``kubelet``, ``containerd``, ``apiserver``, ...
    """

    # Where the shared folder is on every node, for hostPath PersistentVolumes.
    shared_path = "/var/lib/trainyard/shared"

    def __init__(self, known: State) -> None:
        self._state = known
        self._backend = _backend(known)

    @classmethod
    def up(
        cls, name: str = DEFAULT_NAME, nodes: int = 2, provider: str | None = None, progress: Progress | None = None
    ) -> Cluster:
        """Bring a cluster up with at least ``nodes`` nodes, or use the one of this name that is up and well."""
        shown = progress or Progress()
        known = state.load(name)
        chosen = provider or (known.provider if known else choice.choose_here())
        if known and known.provider != chosen:
            raise ClusterError(
                f"cluster {name} is there already, from {known.provider}, not {chosen}; run `down` first"
            )
        if chosen == "existing":
            return cls(existing.create(name, shown))
        if chosen == "kind":
            return cls(kind.create(name, nodes, shown))
        return cls(builtin.create(name, nodes, shown))

    @classmethod
    def open(cls, name: str = DEFAULT_NAME) -> Cluster:
        """The cluster of this name, which must be up."""
        known = state.load(name)
        if known is None or known.phase != "ready":
            have = ", ".join(state.names()) or "none"
            raise ClusterError(
                f"cluster {name!r} is not up (clusters here: {have}); run: python -m cluster up --name {name}"
            )
        return cls(known)

    def down(self, progress: Progress | None = None) -> None:
        remove(self.name, progress)

    @property
    def name(self) -> str:
        return self._state.name

    @property
    def provider(self) -> str:
        return self._state.provider

    @property
    def kubeconfig(self) -> Path:
        return Path(self._state.kubeconfig)

    @property
    def nodes(self) -> list[str]:
        return list(self._state.nodes)

    @property
    def capabilities(self) -> frozenset[str]:
        return self._backend.capabilities

    @property
    def shared(self) -> Path:
        """The host's side of the shared folder."""
        self._need("shared")
        return self._state.folder / "shared"

    @property
    def programs(self) -> Path:
        """The folder with kubectl, helm, kwok and the rest."""
        return self._state.programs_dir()

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """Run kubectl against this cluster; returns its standard output.

        With ``check``, a failure raises ClusterError with kubectl's own message.
        """
        return self._program("kubectl", argv, input, check, seconds)

    def helm(self, *argv: str, input: str | None = None, check: bool = True, seconds: float = 300) -> str:
        """Run helm against this cluster, as ``kubectl``."""
        return self._program("helm", argv, input, check, seconds)

    def _program(self, name: str, argv: tuple[str, ...], text: str | None, check: bool, seconds: float) -> str:
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        try:
            done = subprocess.run([str(self.programs / name), *argv], input=text, env=environment, capture_output=True,
                                  stdin=subprocess.DEVNULL if text is None else None, text=True,
                                  timeout=seconds)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{name} {' '.join(argv)}: no result within {seconds:.0f} s") from error
        if check and done.returncode != 0:
            raise ClusterError(f"{name} {' '.join(argv)} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def load(self, image: str, progress: Progress | None = None) -> str:
        """Bring an image onto every node and return the name to use in pods.

        ``image`` is "operator" or "trainer", built from the checkout if anything in it has changed, or the name of
        an image in the build storage (or, with kind, in Docker).
        """
        self._need("load")
        return images.load(self._backend, self.provider, image, progress or Progress())

    def cut_network(self, node: str) -> None:
        """Let nothing pass between the node and the rest, without any error for either side; see ``mend_network``."""
        self._need("cut-network")
        self._backend.cut_network(node)

    def mend_network(self, node: str) -> None:
        self._need("cut-network")
        self._backend.mend_network(node)

    def stop(self, service: str, node: str = "") -> None:
        """SIGTERM a service and wait until it has ended. Running pods outlive kubelet and containerd."""
        self._signal(service, node, signal.SIGTERM)

    def kill(self, service: str, node: str = "") -> None:
        """SIGKILL a service and wait until it is gone."""
        self._signal(service, node, signal.SIGKILL)

    def pause(self, service: str, node: str = "") -> None:
        """SIGSTOP: it is there, its connections stay, and it does nothing."""
        self._signal(service, node, signal.SIGSTOP)

    def resume(self, service: str, node: str = "") -> None:
        self._signal(service, node, signal.SIGCONT)

    def start(self, service: str, node: str = "") -> None:
        """Start a stopped service; nothing happens if it runs."""
        self._need(service)
        self._backend.start(service, node)

    def restart(self, service: str, node: str = "") -> None:
        self.stop(service, node)
        self.start(service, node)

    def add_node(self) -> str:
        """Add a node, wait until it is Ready, and return its name. It has no images but the sandbox's."""
        self._need("nodes")
        name = self._backend.add_node()
        self._reload()
        return name

    def remove_node(self, node: str) -> None:
        """Switch a node off for good and delete its Node object."""
        self._need("nodes")
        self._backend.remove_node(node)
        self._reload()

    def disk(self, node: str) -> Path:
        """The host's side of the node's own disk, with its ``var/log/pods``."""
        self._need("disks")
        return self._state.folder / "nodes" / node

    def run_on(self, node: str, *argv: str) -> str:
        """Run a command on a node ("" is the control plane) and return its output."""
        return self._backend.run_on(node, list(argv))

    def describe(self) -> list[tuple[str, str, str]]:
        """(machine, service, state) of every part."""
        return self._backend.describe()

    def _signal(self, service: str, node: str, signum: signal.Signals) -> None:
        self._need(service)
        self._backend.signal(service, node, signum)

    def _need(self, capability: str) -> None:
        if capability not in self.capabilities:
            can = ", ".join(sorted(self.capabilities)) or "nothing of the kind"
            raise ClusterError(f"a cluster of provider {self.provider} does not offer {capability!r}; it offers: {can}")

    def _reload(self) -> None:
        fresh = state.load(self.name)
        if fresh is not None:
            self._state = fresh
            self._backend = _backend(fresh)


def _backend(known: State) -> Backend:
    if known.provider == "existing":
        return existing.Levers()
    if known.provider == "kind":
        return kind.Levers(known)
    return builtin.Levers(known)


def remove(name: str, progress: Progress | None = None) -> bool:
    """Take a cluster down, whatever state it is in. False if there was none of this name."""
    shown = progress or Progress()
    known = state.load(name)
    if known is not None and known.provider == "existing":
        state.forget(name)  # the cluster itself is not ours
        return True
    if known is not None and known.provider == "kind":
        return kind.remove(name, shown)
    return builtin.remove(name, shown)
