"""The operator as a process of its own, against the API server of the contract tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]


def until(what: str, seconds: float, look: Callable[[], T], pause: float = 0.1) -> T:
    """The first truthy answer of `look` within that time. Raises AssertionError with the last answer."""
    end = time.monotonic() + seconds
    while True:
        last = look()
        if last:
            return last
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last answer: {last!r}")
        time.sleep(pause)


@dataclass
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def lines(self) -> list[dict[str, Any]]:
        """Everything that it has logged, parsed; a line that is no JSON fails the test."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line]

    def _ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def health(self) -> tuple[int, str]:
        """Status and text of /healthz."""
        return self._ask("/healthz")

    def ready(self) -> tuple[int, str]:
        """Status and text of /readyz."""
        return self._ask("/readyz")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels."""
        total = 0.0
        for line in self._ask("/metrics")[1].splitlines():
            if found := re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line):
                has = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or ""))
                if all(has.get(label) == value for label, value in labels.items()):
                    total += float(found[2])
        return total

    @property
    def leads(self) -> bool:
        """Whether it says so."""
        return self.metric("trainyard_leader") == 1

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=20)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def run_operator(kubeconfig: Path, folder: Path, name: str, *flags: str, namespace: str,
                 before: Sequence[str] = ()) -> Iterator[OperatorProcess]:
    """Start it, behind the words `before`, and wait until it serves; ended when left."""
    log = folder / f"{name}.log"
    argv = [*before, sys.executable, "-m", "trainyard.controller", "--kubeconfig", str(kubeconfig), "--host",
            "127.0.0.1", "--metrics-port", "0", "--trainer-image", "trainer:test", "--lease-namespace", namespace,
            "--identity", name, "--image-pull-policy", "IfNotPresent", *flags]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "operator"), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=environment)
    operator = OperatorProcess(process, log)
    try:
        def port() -> int:
            assert process.poll() is None, f"exit code {process.returncode}:\n{log.read_text()[-3000:]}"
            said = [line for line in log.read_text().splitlines() if '"port"' in line]
            return int(json.loads(said[0])["port"]) if said else 0

        operator.port = until("the operator serves", 30, port)
        yield operator
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
