"""The fabric: the network that the nodes hang on, and the control plane that runs in it."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster import launch
from cluster.builtin import configs
from cluster.builtin.addresses import CONTROL_PLANE, CONTROL_PLANE_PORT
from cluster.builtin.credentials import Credentials
from cluster.builtin.machine import Machine
from cluster.errors import ClusterError
from cluster.ledger import Ledger

SERVICES = ("etcd", "apiserver", "controller-manager", "scheduler", "coredns", "relay")
_RELAY = Path(__file__).with_name("relay.py")


class ControlPlane:
    """``port`` is the relay's on the host's loopback, 0 before there is one."""

    def __init__(self, folder: Path, ledger: Ledger, port: int) -> None:
        self.ledger = ledger
        self.port = port
        self.machine = Machine(ledger, folder / "control", "")
        self.credentials = Credentials(folder / "credentials")
        self._context: ssl.SSLContext | None = None

    def create(self, programs: Path) -> None:
        """Fabric, credentials and the relay; nothing of Kubernetes runs yet."""
        self.credentials.make()
        (self.credentials.folder / "Corefile").write_text(configs.corefile())
        self.machine.hold()
        self.machine.ip(
            "link set lo up",
            "link add br0 type bridge",
            # The address of a bridge without a fixed one changes with its ports, and neighbours' caches go stale.
            "link set br0 address 02:00:0a:5a:00:01",
            f"addr add {CONTROL_PLANE}/16 dev br0",
            "link set br0 up",
        )
        self.machine.kernel(ipv4__ip_forward="1", ipv4__conf__all__send_redirects="0")
        self.machine.mount(programs, {configs.ETC: self.credentials.folder}, "control")
        self._open_relay()

    def _open_relay(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        launch.start(
            [sys.executable, "-I", _RELAY, str(listener.fileno()), CONTROL_PLANE, str(CONTROL_PLANE_PORT)],
            ledger=self.ledger,
            role="relay",
            log=self.machine.logs / "relay.log",
            inside=self.machine.init,
            # It keeps the host's files: this Python may live anywhere.
            namespaces=("-n", "-p"),
            keep=[listener.fileno()],
        )
        listener.close()

    def start_service(self, service: str) -> None:
        if self.ledger.processes(service, ""):
            return
        commands = {
            "etcd": configs.etcd,
            "apiserver": configs.apiserver,
            "controller-manager": configs.controllers,
            "scheduler": configs.scheduler,
            "coredns": configs.coredns,
        }
        self.machine.start(service, commands[service]())

    def get(self, path: str, seconds: float = 5) -> bytes:
        """GET from the API server as the administrator. Raises OSError if there is no good answer."""
        if self._context is None:
            folder = self.credentials.folder
            self._context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
            self._context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        url = f"https://127.0.0.1:{self.port}{path}"
        # No proxy: the address is ours whatever the environment says.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        with opener.open(url, timeout=seconds) as answer:
            return bytes(answer.read())

    def objects(self, path: str) -> list[dict[str, Any]]:
        return list(json.loads(self.get(path))["items"])

    def ready(self) -> bool:
        try:
            return self.get("/readyz") == b"ok"
        except OSError:
            return False

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait for the API server, all of its start-up hooks done."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.ready():
                return
            for service in ("etcd", "apiserver"):
                if not self.ledger.processes(service, ""):
                    raise ClusterError(f"{service} ended; the end of its log:\n{self.machine.log_tail(service)}")
            time.sleep(0.05)
        raise ClusterError(f"API server not ready after {seconds:.0f} s; logs are in {self.machine.logs}")

    def wait_usable(self, nodes: list[str], seconds: float = 60) -> None:
        """Wait until the nodes are Ready and a pod can be made in the default namespace."""
        deadline = time.monotonic() + seconds
        missing: set[str] = set(nodes)
        account = False
        while time.monotonic() < deadline:
            try:
                missing = set(nodes) - {
                    node["metadata"]["name"] for node in self.objects("/api/v1/nodes") if _is_ready(node)
                }
                account = account or bool(self.get("/api/v1/namespaces/default/serviceaccounts/default"))
            except OSError:
                pass  # the account is made a moment after the namespace
            if account and not missing:
                return
            time.sleep(0.1)
        what = f"nodes not Ready: {', '.join(sorted(missing))}" if missing else "no default service account"
        raise ClusterError(f"after {seconds:.0f} s still {what}; logs are in {self.machine.folder.parent}")


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
