"""The built-in cluster as a whole: up, down, levers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cluster import gotools, ledger, packages
from cluster.builtin import addresses, cgroups, configs, control, node
from cluster.builtin.addresses import NodePlan, node_number
from cluster.builtin.control import ControlPlane
from cluster.builtin.node import Node
from cluster.builtin.watches import require_watches
from cluster.errors import ClusterError
from cluster.images.layout import Layout, pause_image
from cluster.launch import run
from cluster.ledger import Entry, Ledger, kill_all
from cluster.paths import cache_root, cluster_dir, clusters_root
from cluster.progress import Progress
from cluster.state import State, load
from cluster.trash import discard

CAPABILITIES = frozenset({"load", "cut-network", "kubelet", "containerd", "kube-proxy", "apiserver", "scheduler",
                          "controller-manager", "nodes", "shared", "disks"})  # fmt: skip


def create(name: str, nodes: int, progress: Progress) -> State:
    """Bring the cluster up with ``nodes`` nodes; one that is up and well is kept, and gets the nodes it lacks."""
    addresses.checked_name(name)
    packages.require_root()
    packages.ensure(packages.FOR_CLUSTER, progress)
    programs = gotools.binaries(progress)
    with locked(name):
        state = load(name)
        if state is not None and healthy(state):
            _grow(state, nodes, progress)
            return state
        if cluster_dir(name).exists():
            with progress.step("removing what an earlier run has left"):
                _remove(name)
        return _create(name, nodes, programs, progress)


def _create(name: str, nodes: int, programs: Path, progress: Progress) -> State:
    require_watches(nodes)
    plans = [NodePlan(number) for number in range(1, nodes + 1)]
    folder = cluster_dir(name)
    state = State(
        name, "builtin", str(folder / "kubeconfig"), nodes=[plan.name for plan in plans], programs=str(programs)
    )
    state.save()
    book = Ledger(folder / "ledger")
    pause = Layout(cache_root() / "images" / "pause")
    pause_image(pause)
    plane = ControlPlane(folder, book, 0)
    with progress.step("network and credentials"):
        book.add(Entry("cgroup", "cgroup", path=addresses.cgroup(name)))
        plane.create(programs)
        state.port = plane.port
        state.save()
    with progress.step("control plane and nodes started"), ThreadPoolExecutor(max_workers=8) as pool:
        plane.start_service("etcd")
        plane.start_service("apiserver")
        made = [Node(name, folder, book, plan) for plan in plans]
        jobs = [pool.submit(each.create, plane.machine, plane.credentials, programs, pause) for each in made]
        plane.wait_ready()
        for service in ("controller-manager", "scheduler", "coredns"):
            plane.start_service(service)
        for job in jobs:
            job.result()
        _connect_all(made)
        for each in made:
            each.start_service("kubelet")
            each.start_service("kube-proxy")
    _write_kubeconfig(state, plane)
    with progress.step(f"{nodes} nodes Ready"):
        _kubectl(state, "apply", "-f", "-", stdin=configs.coredns_rights())
        plane.wait_usable(state.nodes)
    state.phase = "ready"
    state.save()
    return state


def _connect_all(nodes: list[Node]) -> None:
    for each in nodes:
        for other in nodes:
            if other is not each:
                each.route_to(other.plan)


def _write_kubeconfig(state: State, plane: ControlPlane) -> None:
    plane.credentials.kubeconfig("admin", f"https://127.0.0.1:{plane.port}", Path(state.kubeconfig))


def _kubectl(state: State, *argv: str, stdin: str | None = None) -> str:
    return run([state.programs_dir() / "kubectl", "--kubeconfig", state.kubeconfig, *argv], stdin=stdin)


def _grow(state: State, nodes: int, progress: Progress) -> None:
    while len(state.nodes) < nodes:
        with progress.step("adding a node"):
            _add_node(state)


def healthy(state: State) -> bool:
    """Whether everything that belongs to the cluster is alive and the API server says it is ready."""
    if state.phase != "ready":
        return False
    book = Ledger(state.folder / "ledger")
    living = {(entry.node, entry.role) for entry in book.processes()}
    wanted = {("", service) for service in control.SERVICES}
    wanted |= {(name, service) for name in state.nodes for service in node.SERVICES}
    return wanted <= living and ControlPlane(state.folder, book, state.port).ready()


def remove(name: str, progress: Progress) -> bool:
    """Take the cluster down. False if there was none."""
    packages.require_root()
    with locked(name):
        if not cluster_dir(name).exists():
            return False
        with progress.step(f"removing cluster {name}"):
            _remove(name)
        return True


def _remove(name: str) -> None:
    """Remove all that the ledger knows, then the folder with the ledger, in one step, so that this can be cut short."""
    folder = cluster_dir(name)
    book = Ledger(folder / "ledger")
    entries = book.entries()
    kill_all(entries)
    for entry in reversed(entries):
        if entry.kind == "cgroup":
            cgroups.remove(entry.path)
    discard(folder)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One command at a time works on a cluster."""
    clusters_root().mkdir(parents=True, exist_ok=True)
    with gotools.exclusive(clusters_root() / f"{name}.lock"):
        yield


class Levers:
    """What can be done to a running built-in cluster, beyond what Kubernetes itself offers."""

    capabilities = CAPABILITIES

    def __init__(self, state: State) -> None:
        self.state = state
        self.book = Ledger(state.folder / "ledger")
        self.plane = ControlPlane(state.folder, self.book, state.port)

    def node(self, name: str) -> Node:
        if name not in self.state.nodes:
            raise ClusterError(f"node {name!r}: cluster {self.state.name} has {', '.join(self.state.nodes)}")
        return _node(self.state, self.book, name)

    def cut_network(self, name: str) -> None:
        """Drop all traffic between the node and the rest, silently, as a failed switch does."""
        self._port(name, "disabled")

    def mend_network(self, name: str) -> None:
        self._port(name, "forwarding")

    def _port(self, name: str, word: str) -> None:
        port = self.node(name).plan.port
        run(["nsenter", "-t", str(self.plane.machine.init), "-n", "--", "bridge", "link", "set", "dev", port, "state",
             word])  # fmt: skip

    def signal(self, service: str, name: str, signum: signal.Signals) -> None:
        """Signal a service and wait until it is gone, or stands still, if that is what the signal does."""
        targets = self.book.processes(service, name)
        if not targets:
            raise ClusterError(f"{service} {name}".strip() + " is not running")
        if signum == signal.SIGCONT:
            # nsenter stops itself along with its child.
            targets += self.book.processes("nsenter:" + service, name)
        for entry in targets:
            ledger.send(entry, signum)
        if signum in (signal.SIGTERM, signal.SIGKILL) and ledger.wait_gone(targets):
            raise ClusterError(f"{service} {name} is still there 10 s after signal {signum.name}; try kill")
        if signum == signal.SIGSTOP and ledger.wait_stopped(targets):
            raise ClusterError(f"{service} {name} still runs 10 s after SIGSTOP")

    def start(self, service: str, name: str) -> None:
        """Start a service and wait until it answers, where it has a way to."""
        with locked(self.state.name):
            if not name:
                self.plane.start_service(service)
                if service in ("etcd", "apiserver"):
                    self.plane.wait_ready()
                return
            each = self.node(name)
            each.start_service(service)
            if service == "containerd":
                each.wait_containerd()

    def add_node(self) -> str:
        with locked(self.state.name):
            return _add_node(self.state)

    def remove_node(self, name: str) -> None:
        with locked(self.state.name):
            _remove_node(self.state, self.node(name))

    def load(self, layout: Layout, name: str, images: list[str]) -> int:
        """Load into all nodes side by side; returns the bytes moved to the node that needed most."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            return max(pool.map(lambda each: self.node(each).load(layout, name, images), self.state.nodes), default=0)

    def run_on(self, name: str, argv: list[str]) -> str:
        """Run a command on a node, or on the control plane for ""."""
        return (self.node(name).machine if name else self.plane.machine).enter(argv)

    def describe(self) -> list[tuple[str, str, str]]:
        """(machine, service, state) of everything that should run."""
        rows = [("control", each, node.service_state(self.book, each)) for each in control.SERVICES]
        for name in self.state.nodes:
            rows += [(name, service, word) for service, word in self.node(name).describe()]
        return rows


def _node(state: State, book: Ledger, name: str) -> Node:
    return Node(state.name, state.folder, book, NodePlan(node_number(name)))


def _add_node(state: State) -> str:
    book = Ledger(state.folder / "ledger")
    plane = ControlPlane(state.folder, book, state.port)
    others = [_node(state, book, name) for name in state.nodes]
    plan = NodePlan(addresses.next_number([each.plan.number for each in others]))
    made = Node(state.name, state.folder, book, plan)
    state.nodes = [*state.nodes, plan.name]
    state.save()
    made.create(plane.machine, plane.credentials, state.programs_dir(), Layout(cache_root() / "images" / "pause"))
    for other in others:
        other.route_to(plan)
        made.route_to(other.plan)
    made.start_service("kubelet")
    made.start_service("kube-proxy")
    plane.wait_usable([plan.name])
    return plan.name


def _remove_node(state: State, gone: Node) -> None:
    """Pull the plug, then tell the API server, so that the kubelet cannot register again."""
    book, name = gone.ledger, gone.plan.name
    entries = [entry for entry in book.entries() if entry.node == name]
    kill_all(entries)
    for entry in entries:
        if entry.kind == "cgroup":
            cgroups.remove(entry.path)
    _kubectl(state, "delete", "node", name, "--ignore-not-found", "--wait=false")
    state.nodes = [each for each in state.nodes if each != name]
    for other in state.nodes:
        _node(state, book, other).unroute(gone.plan)
    ControlPlane(state.folder, book, state.port).machine.ip(f"route del {gone.plan.pods}")
    discard(gone.machine.folder)
    state.save()
    book.forget(lambda entry: entry.node == name)
