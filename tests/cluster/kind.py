"""A cluster by kind, where a Docker engine answers."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import NoReturn

from cluster import gotools, state
from cluster.builtin.addresses import checked_name
from cluster.errors import ClusterError
from cluster.images.layout import Layout
from cluster.launch import run
from cluster.progress import Progress
from cluster.state import State

SHARED = "/var/lib/trainyard/shared"
# The same early notice of lost nodes as in the built-in cluster (builtin/configs.py).
_PATCH = """kind: ClusterConfiguration
controllerManager:
  extraArgs:
    node-monitor-period: "1s"
    node-monitor-grace-period: "8s"
"""
_KUBELET = """kind: KubeletConfiguration
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 8
"""
_CONTROL_PLANE = {"apiserver": "kube-apiserver", "scheduler": "kube-scheduler",
                  "controller-manager": "kube-controller-manager"}  # fmt: skip

# Rules that drop all that enters or leaves a node.
_DROPS = [[chain, side, "eth0", "-j", "DROP"]
          for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o"), ("FORWARD", "-i"), ("FORWARD", "-o"))]  # fmt: skip


def configuration(shared: str, nodes: int) -> str:
    """kind's own configuration document: a control plane and ``nodes`` workers that share the folder ``shared``."""
    mounts = [{"hostPath": shared, "containerPath": SHARED}]
    document = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kubeadmConfigPatches": [_PATCH, _KUBELET],
        "nodes": [{"role": "control-plane"}, *({"role": "worker", "extraMounts": mounts} for _ in range(nodes))],
    }
    return json.dumps(document)


def create(name: str, nodes: int, progress: Progress) -> State:
    """Bring the cluster up; one that answers is kept as it is."""
    checked_name(name)
    programs = gotools.binaries(progress, gotools.CLIENTS | {"kind"})
    known = state.load(name)
    if known is not None and known.phase == "ready" and _answers(known):
        if len(known.nodes) < nodes:
            raise ClusterError(f"cluster {name} has {len(known.nodes)} nodes and kind cannot add any: run `down` first")
        return known
    if known is not None:
        remove(name, progress)
    fresh = State(name, "kind", "", programs=str(programs))
    fresh.kubeconfig = str(fresh.folder / "kubeconfig")
    fresh.save()
    shared = fresh.folder / "shared"
    shared.mkdir(exist_ok=True)
    shared.chmod(0o1777)
    with progress.step(f"kind create cluster, {nodes} nodes"):
        run([programs / "kind", "create", "cluster", "--name", _kind_name(name), "--kubeconfig", fresh.kubeconfig,
             "--config", "-", "--wait", "180s"], stdin=configuration(str(shared), nodes), seconds=900)  # fmt: skip
    answer = run([programs / "kind", "get", "nodes", "--name", _kind_name(name)])
    fresh.nodes = sorted(word for word in answer.split() if not word.endswith("control-plane"))
    fresh.phase = "ready"
    fresh.save()
    return fresh


def _kind_name(name: str) -> str:
    return f"trainyard-{name}"


def _answers(known: State) -> bool:
    try:
        run([known.programs_dir() / "kubectl", "--kubeconfig", known.kubeconfig, "get", "--raw", "/readyz"], seconds=10)
    except ClusterError:
        return False
    return True


def remove(name: str, progress: Progress) -> bool:
    known = state.load(name)
    if known is None:
        return False
    with progress.step(f"removing kind cluster {name}"):
        run([known.programs_dir() / "kind", "delete", "cluster", "--name", _kind_name(name), "--kubeconfig",
             known.kubeconfig], seconds=300)  # fmt: skip
    state.forget(name)
    return True


class Levers:
    """Through ``docker exec`` into kind's node containers, which run systemd."""

    capabilities: frozenset[str] = frozenset(
        {"load", "cut-network", "kubelet", "containerd", "shared", *_CONTROL_PLANE}
    )

    def __init__(self, known: State) -> None:
        self._state = known

    def cut_network(self, name: str) -> None:
        for rule in _DROPS:
            self._exec(self._node(name), "iptables", "--wait", "-I", *rule)

    def mend_network(self, name: str) -> None:
        for rule in _DROPS:
            self._exec(self._node(name), "iptables", "--wait", "-D", *rule)

    def signal(self, service: str, name: str, signum: signal.Signals) -> None:
        if service in _CONTROL_PLANE:
            container = f"{_kind_name(self._state.name)}-control-plane"
            if signum not in (signal.SIGSTOP, signal.SIGCONT):
                raise ClusterError(
                    f"kind's {service} is restarted by its kubelet at once; it can only be paused and resumed"
                )
            self._exec(container, "pkill", f"-{signum.name}", "-x", _CONTROL_PLANE[service])
        elif signum == signal.SIGTERM:
            self._exec(self._node(name), "systemctl", "stop", service)
        elif signum == signal.SIGKILL:
            # Otherwise systemd would start it again before anybody notices.
            self._exec(self._node(name), "systemctl", "kill", "--signal=SIGKILL", service)
            self._exec(self._node(name), "systemctl", "stop", service)
        else:
            self._exec(self._node(name), "systemctl", "kill", f"--signal={signum.name}", service)

    def start(self, service: str, name: str) -> None:
        if service in _CONTROL_PLANE:
            raise ClusterError(f"kind's {service} is started by its kubelet")
        self._exec(self._node(name), "systemctl", "start", service)

    def add_node(self) -> str:
        _refuse_nodes()

    def remove_node(self, name: str) -> None:
        _refuse_nodes()

    def load(self, layout: Layout, name: str, images: list[str]) -> int:
        program = self._state.programs_dir() / "kind"
        run([program, "load", "docker-image", "--name", _kind_name(self._state.name), *images], seconds=900)
        return 0

    def run_on(self, name: str, argv: list[str]) -> str:
        return self._exec(self._node(name) if name else f"{_kind_name(self._state.name)}-control-plane", *argv)

    def describe(self) -> list[tuple[str, str, str]]:
        rows = []
        for name in self._state.nodes:
            for service in ("containerd", "kubelet"):
                done = subprocess.run(["docker", "exec", name, "systemctl", "is-active", service], capture_output=True,
                                      text=True)  # fmt: skip
                rows.append((name, service, done.stdout.strip() or "unreachable"))
        return rows

    def _node(self, name: str) -> str:
        if name not in self._state.nodes:
            raise ClusterError(f"node {name!r}: cluster {self._state.name} has {', '.join(self._state.nodes)}")
        return name

    def _exec(self, container: str, *argv: str) -> str:
        return run(["docker", "exec", container, *argv], what=f"{argv[0]} in {container}")


def _refuse_nodes() -> NoReturn:
    raise ClusterError("kind cannot add or remove nodes of a running cluster")
