"""One node: its cable to the fabric, its containerd, kubelet and kube-proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from functools import cached_property
from pathlib import Path

from cluster.builtin import cgroups, configs
from cluster.builtin.addresses import CONTROL_PLANE, NodePlan, cgroup
from cluster.builtin.credentials import Credentials
from cluster.builtin.machine import Machine
from cluster.errors import ClusterError
from cluster.images import seed
from cluster.images.layout import Layout, import_archive, pause_image
from cluster.launch import ALL_NAMESPACES
from cluster.ledger import Entry, Ledger, start_time

SERVICES = ("containerd", "kubelet", "kube-proxy")


class Node:
    """``folder`` is the cluster's; the node's own disk is ``folder/nodes/<name>``."""

    def __init__(self, cluster: str, folder: Path, ledger: Ledger, plan: NodePlan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.ledger = ledger
        self.machine = Machine(ledger, folder / "nodes" / plan.name, plan.name)
        self._shared = folder / "shared"

    def create(self, fabric: Machine, credentials: Credentials, programs: Path, pause: Layout) -> None:
        """Everything up to a running containerd; needs no API server."""
        group = f"{cgroup(self.cluster)}/{self.plan.name}"
        self.ledger.add(Entry("cgroup", "cgroup", self.plan.name, path=group))
        cgroups.make(group)
        self.machine.hold()
        self._write_configs(credentials, pause_image(pause))
        self._connect(fabric)
        binds = {configs.ETC: self._etc, configs.SHARED: self._shared}
        if self._snapshotter == "overlayfs":
            seed.plant(self.machine.folder / "var" / "lib" / "containerd")
        self.machine.mount(programs, binds, self.plan.name)
        self.start_service("containerd")
        self._load_pause(pause)

    @property
    def _etc(self) -> Path:
        return self.machine.folder / "etc"

    @cached_property
    def _snapshotter(self) -> str:
        return "overlayfs" if supports_overlay(self.machine.folder) else "native"

    def _write_configs(self, credentials: Credentials, pause: str) -> None:
        (self._etc / "cni").mkdir(parents=True, exist_ok=True)
        self._shared.mkdir(exist_ok=True)
        # Pods run under any user and share this folder as they would a network file system.
        self._shared.chmod(0o1777)
        credentials.make_node(self.plan)
        name = self.plan.name
        for part in ("ca.crt", "kube-proxy.kubeconfig", f"{name}.kubeconfig", f"{name}-serving.crt",
                     f"{name}-serving.key"):  # fmt: skip
            shutil.copy(credentials.folder / part, self._etc)
        (self._etc / "containerd.toml").write_text(configs.containerd(pause, self._snapshotter))
        (self._etc / "cni" / "10-trainyard.conflist").write_text(configs.cni(self.plan))
        (self._etc / "kubelet.json").write_text(configs.kubelet_document(self.cluster, self.plan))
        (self._etc / "kube-proxy.json").write_text(configs.kube_proxy_document(self.plan))

    def _connect(self, fabric: Machine) -> None:
        plan = self.plan
        fabric.ip(
            f"link add {plan.port} type veth peer name eth0 netns {self.machine.init}",
            f"link set {plan.port} master br0",
            f"link set {plan.port} up",
            f"route replace {plan.pods} via {plan.ip}",
        )
        self.machine.ip(
            "link set lo up",
            f"addr add {plan.ip}/16 dev eth0",
            "link set eth0 up",
            f"route add default via {CONTROL_PLANE}",
        )
        self.machine.kernel(ipv4__ip_forward="1")

    def route_to(self, other: NodePlan) -> None:
        self.machine.ip(f"route replace {other.pods} via {other.ip}")

    def unroute(self, other: NodePlan) -> None:
        self.machine.ip(f"route del {other.pods}")

    def start_service(self, service: str) -> None:
        """Start containerd, kubelet or kube-proxy; nothing happens if it runs already."""
        if self.ledger.processes(service, self.plan.name):
            return
        argv = {
            "containerd": configs.containerd_command,
            "kubelet": lambda: configs.kubelet(self.plan),
            "kube-proxy": configs.kube_proxy,
        }[service]()
        self.machine.start(service, argv)

    def ctr(self, *argv: str, seconds: float = 60) -> str:
        command = ["ctr", "--address", configs.CONTAINERD_SOCKET, "--namespace", "k8s.io", *argv]
        return self.machine.enter(command, what=f"ctr {argv[0]} on {self.plan.name}", seconds=seconds)

    def wait_containerd(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        socket = self._inner(configs.CONTAINERD_SOCKET)
        while time.monotonic() < deadline:
            if socket.exists():
                try:
                    self.ctr("version", seconds=5)
                    return
                except ClusterError:
                    pass  # the socket is there before the service behind it
            if not self.ledger.processes("containerd", self.plan.name):
                break
            time.sleep(0.05)
        tail = self.machine.log_tail("containerd")
        raise ClusterError(f"containerd on {self.plan.name} does not answer; the end of its log:\n{tail}")

    def _inner(self, path: str) -> Path:
        """A path of the node, seen from the host."""
        return Path(f"/proc/{self.machine.init}/root{path}")

    def _load_pause(self, pause: Layout) -> None:
        self.wait_containerd()
        self.load(pause, pause_image(pause), [pause_image(pause)])

    def load(self, layout: Layout, name: str, images: list[str]) -> int:
        """Import an image under the names ``images``; returns the bytes of layers that the node did not have yet."""
        entry = layout.descriptor(name)
        if entry is None:
            raise ClusterError(f"image {name} is not in {layout.folder}; build it first")
        present = self.images()
        wanted = [image for image in images if f"{image} {entry['digest']}" not in present]
        if not wanted:
            return 0
        have = set(self.ctr("content", "ls", "--quiet").split())
        command = ["nsenter", "-t", str(self.machine.init), *ALL_NAMESPACES, "--", "ctr", "--address",
                   configs.CONTAINERD_SOCKET, "--namespace", "k8s.io", "images", "import", "-"]  # fmt: skip
        return import_archive(layout, name, wanted, have, command, f"importing an image on {self.plan.name}")

    def images(self) -> list[str]:
        """Images on the node as "name digest"."""
        rows = [line.split() for line in self.ctr("images", "ls").splitlines()[1:]]
        return [f"{row[0]} {row[2]}" for row in rows if len(row) > 2]

    def describe(self) -> list[tuple[str, str]]:
        """Each service and its state."""
        return [(service, service_state(self.ledger, service, self.plan.name)) for service in SERVICES]


def service_state(ledger: Ledger, role: str, node: str = "") -> str:
    """ "running", "paused" or "stopped", with pid, age and memory where there is a process."""
    found = ledger.processes(role, node)
    if not found:
        return "stopped"
    pid = found[-1].pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    word = "paused" if status["State"].split()[0] in "Tt" else "running"
    memory = int(status.get("VmRSS", "0 kB").split()[0]) / 1024
    ticks = os.sysconf("SC_CLK_TCK")
    age = float(Path("/proc/uptime").read_text().split()[0]) - (start_time(pid) or 0) / ticks
    return f"{word}  pid {pid}  {age:.0f} s  {memory:.0f} MiB"


def supports_overlay(folder: Path) -> bool:
    """Whether overlay mounts work on this folder's file system (not on an overlay, as in a container)."""
    probe = folder / "overlay-probe"
    for part in ("lower", "upper", "work", "merged"):
        (probe / part).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
    script = 'mount -t overlay overlay -o "$1" "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", options, str(probe / "merged")], capture_output=True
    )
    shutil.rmtree(probe, ignore_errors=True)
    return done.returncode == 0
