"""The agent as a process of its own, between the API server of the contract tests and a stand-in for kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.operator_process import REPOSITORY, until


@dataclass
class Site:
    """A node's side of things: kubelet's folders and the description of its devices."""

    node: str
    kubeconfig: Path
    folder: Path
    described: dict[str, Any] = field(default_factory=lambda: {"model": "910A"})

    @property
    def plugins(self) -> Path:
        return self.folder / "plugins"

    @property
    def file(self) -> Path:
        return self.folder / "devices.yaml"

    def prepare(self) -> None:
        """Make what the node would have."""
        self.plugins.mkdir(parents=True)
        (self.folder / "faults.yaml").write_text("probation: {seconds: 0}")
        self.describe()

    def describe(self, **changes: Any) -> None:
        """The node's entry from now on; a value of None takes a field away."""
        self.described = {name: value for name, value in (self.described | changes).items() if value is not None}
        self.write(json.dumps({"nodes": {self.node: self.described}}))

    def write(self, text: str) -> None:
        """Any text."""
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.replace(self.file)


@dataclass
class AgentProcess:
    """A running agent."""

    process: subprocess.Popen[bytes]
    port: int

    def ready(self) -> tuple[int, str]:
        """Status and text of /readyz."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def run_agent(site: Site) -> Iterator[AgentProcess]:
    """Start it and wait until it answers; ended when left."""
    log = site.folder / "agent.log"
    argv = [sys.executable, "-m", "trainyard.agent", "--kubeconfig", str(site.kubeconfig), "--host", "127.0.0.1",
            "--metrics-port", "0", "--node", site.node, "--backend", "simulated", "--simulated-file", str(site.file),
            "--fault-table", str(site.folder / "faults.yaml"), "--plugins-folder", str(site.plugins),
            "--pod-resources-socket", str(site.folder / "none.sock")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "operator"), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=environment)
    try:
        def port() -> int:
            assert process.poll() is None, f"exit code {process.returncode}:\n{log.read_text()[-3000:]}"
            said = [line for line in log.read_text().splitlines() if '"port"' in line]
            return int(json.loads(said[0])["port"]) if said else 0

        yield AgentProcess(process, until("the agent serves", 30, port))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
