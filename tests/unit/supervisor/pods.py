"""Real supervisors as processes, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unit.supervisor.fake_api import FakeApi

SOURCE = Path(__file__).parents[3] / "trainer-image"
TOKEN = "a-token-of-this-test"


class SupervisedPod:
    """One supervisor process. The Python that runs it has no torch unless the program's has (see torchstore.py)."""

    def __init__(self, folder: Path, api: FakeApi, program: list[str], index: int = 0, ranks: int = 1, nodes: int = 1,
                 incarnation: int = 1, uid: str = "", command: list[str] | None = None, **environment: str) -> None:
        self.name = f"j-{index}-{incarnation}"
        self.uid = uid or f"uid-{index}-{incarnation}"
        self.log = folder / f"{self.name}.log"
        self.termination = folder / f"{self.name}.termination"
        scratch = folder / f"{self.name}.tmp"
        scratch.mkdir(exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith("OMP")}
        own.update({
            "PYTHONPATH": str(SOURCE), "TMPDIR": str(scratch), "TRAINYARD_API_SERVER": api.url,
            "TRAINYARD_SERVICE_ACCOUNT": str(folder), "TRAINYARD_TERMINATION_LOG": str(self.termination),
            "TRAINYARD_JOB": "j", "TRAINYARD_JOB_UID": "job-uid", "TRAINYARD_NAMESPACE": "team",
            "TRAINYARD_POD": self.name, "TRAINYARD_POD_UID": self.uid, "TRAINYARD_POD_IP": "127.0.0.1",
            "TRAINYARD_INDEX": str(index), "TRAINYARD_INCARNATION": str(incarnation),
            "TRAINYARD_NUM_NODES": str(nodes), "TRAINYARD_NUM_PROC": str(ranks), "TRAINYARD_GRACE": "30", **environment,
        })
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([*(command or [sys.executable, "-m", "supervisor"]), "--", *program],
                                            env=own, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def output(self) -> str:
        return self.log.read_bytes().decode("utf-8", "replace")

    def wait(self, timeout: float = 30) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} has not left within {timeout} s:\n{self.output()[-4000:]}") from None

    def wait_output(self, text: str, timeout: float = 30) -> str:
        """Its output once this text is in it."""
        wait_for(lambda: text in self.output(), timeout,
                 lambda: f"{text!r} was not printed:\n{self.output()[-4000:]}")
        return self.output()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Whatever it is at. It kills its ranks when it is fenced, so ask first."""
        if self.process.poll() is None:
            for child in children_of(self.process.pid):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


class Operator:
    """Writes the World as the operator would, when a test says so."""

    def __init__(self, api: FakeApi, size: int = 1, **spec: Any) -> None:
        self.api = api
        self.spec: dict[str, Any] = {"protocol": 1, "job": "job-uid", "generation": 1, "phase": "Run", "size": size,
                                     "token": TOKEN, "joinSeconds": 60, "drainSeconds": 20, **spec}

    def put(self, **changes: Any) -> None:
        self.spec.update(changes)
        self.api.put_world("j", self.spec)

    def run(self, master: SupervisedPod) -> None:
        """Name the master, and fill its address in."""
        self.put(master={"pod": master.name, "podUid": master.uid})
        told = self.api.wait_report(lambda pod, spec: pod == master.name and spec.get("address"))
        self.put(master={"pod": master.name, "podUid": master.uid, "address": told["address"]})

    def report(self, kind: str, generation: int | None = None, timeout: float = 30) -> dict[str, Any]:
        """The first report of this kind, in this generation or in any."""
        return self.api.wait_report(
            lambda _, spec: spec["kind"] == kind and generation in (None, spec["generation"]), timeout)


def wait_for(look: Callable[[], Any], timeout: float, otherwise: Callable[[], str]) -> Any:
    """What `look` says once that is true; looked at every 10 ms, TimeoutError after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise())
        time.sleep(0.01)
    return seen


def children_of(pid: int) -> list[int]:
    """Children of a process that lives, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
