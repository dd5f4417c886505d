"""A machine of the cluster: a process that holds a set of namespaces, and what runs in them.

When the holder dies, the kernel kills every process in its pid namespace and takes back its mounts and its network,
whatever state they are in. That makes removal certain, and is why only the holder has to be found again.
"""

from __future__ import annotations

from pathlib import Path

from cluster import launch
from cluster.builtin import configs
from cluster.errors import ClusterError
from cluster.ledger import Entry, Ledger, process_entry

_HOLD = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
         "catatonit", "-P"]  # fmt: skip


class Machine:
    """``name`` is "" for the fabric with the control plane, else the node's name."""

    def __init__(self, ledger: Ledger, folder: Path, name: str) -> None:
        self.ledger = ledger
        self.folder = folder
        self.name = name
        self.logs = folder / "logs"

    @property
    def init(self) -> int:
        """The pid of its init; ClusterError if the machine is not running."""
        found = self.ledger.processes("init", self.name)
        if not found:
            raise ClusterError(f"{self.name or 'the control plane'} is not running; run `down`, then `up`")
        return found[-1].pid

    def hold(self) -> None:
        """Make the namespaces."""
        self.logs.mkdir(parents=True, exist_ok=True)
        holder = launch.start(_HOLD, ledger=self.ledger, role="holder", node=self.name, log=self.logs / "holder.log")
        pid = launch.only_child(holder.pid)
        self.ledger.add(process_entry("init", pid, self.name))

    def mount(self, programs: Path, binds: dict[str, Path], hostname: str) -> None:
        """Lay the machine's own ``/run`` and ``/var`` over the host's, and ``binds`` (inner path -> folder) in them.

        Both are put together under the machine's folder first: what is bound may itself lie below ``/run`` or
        ``/var`` of the host.
        """
        run, var = self.folder / "run", self.folder / "var"
        for part in ("lib/kubelet", "lib/containerd", "lib/cni", "log/pods", "log/containers", "tmp", "cache"):
            (var / part).mkdir(parents=True, exist_ok=True)
        if not (var / "run").is_symlink():
            (var / "run").symlink_to("/run")
        run.mkdir(exist_ok=True)
        lines = ["set -e", f"mount -t tmpfs -o mode=755 tmpfs {_quote(run)}"]
        for inner, folder in {configs.BIN: programs, **binds}.items():
            staged = self.folder / inner.lstrip("/")
            lines += [f"mkdir -p {_quote(staged)}", f"mount --bind {_quote(folder)} {_quote(staged)}"]
        settings = self.folder / "kernel"
        for name, value in configs.KERNEL_SETTINGS.items():
            wanted = settings / name
            wanted.parent.mkdir(parents=True, exist_ok=True)
            wanted.write_text(value + "\n")
            lines += [f"[ ! -e /proc/sys/{name} ] || mount --bind {_quote(wanted)} /proc/sys/{name}"]
        lines += [
            f"mount --rbind {_quote(run)} /run",
            f"mount --rbind {_quote(var)} /var",
            "mkdir -p /run/netns /run/lock",
            # Containers may ask for mounts that propagate; they do within the machine, never to the host.
            "mount --make-rshared /",
            f"hostname {hostname}",
        ]
        self.enter(["sh", "-s"], stdin="\n".join(lines) + "\n", what=f"mounting {hostname}")

    def start(self, role: str, argv: list[str]) -> Entry:
        return launch.start(
            argv, ledger=self.ledger, role=role, node=self.name, log=self.logs / f"{role}.log", inside=self.init
        )

    def enter(self, argv: list[str], stdin: str | None = None, what: str = "", seconds: float = 60) -> str:
        """Run a command on the machine and return its output."""
        return launch.run_in(self.init, argv, stdin=stdin, what=what, seconds=seconds)

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip`` in the machine's network, where pids are still those of the host."""
        launch.run_in_network(self.init, ["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def kernel(self, **settings: str) -> None:
        """Set network settings of this machine, such as ``ipv4__ip_forward="1"`` for net/ipv4/ip_forward."""
        lines = [f"echo {value} > /proc/sys/net/{name.replace('__', '/')}" for name, value in settings.items()]
        launch.run_in_network(self.init, ["sh", "-e", "-s"], stdin="\n".join(lines) + "\n")

    def log_tail(self, role: str, lines: int = 15) -> str:
        path = self.logs / f"{role}.log"
        text = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(text[-lines:]) or f"({path} is empty)"


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
