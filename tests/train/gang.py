"""Real gangs of trainer processes, started with torchrun's environment as Trainyard's supervisor does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
LOSS = re.compile(r"^step (\d+)/\d+ loss (\S+) norm (\S+) ", re.MULTILINE)


def port() -> int:
    """A free TCP port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Ended:
    """How a gang ended."""

    codes: list[int]
    out: list[str]
    err: list[str]
    seconds: float

    @property
    def losses(self) -> dict[int, str]:
        """Loss as printed, by step."""
        return {int(step): loss for step, loss, _ in LOSS.findall(self.out[0])}

    @property
    def text(self) -> str:
        """Everything, for a failed assertion."""
        return "\n".join(f"--- rank {rank}: exit {code}\n{out}\n{err}" for rank, (code, out, err)
                         in enumerate(zip(self.codes, self.out, self.err, strict=True)))


class Gang:
    """Ranks of one generation; ended by force when the block is left."""

    def __init__(self, folder: Path, configs: Sequence[dict[str, Any]], checkpoint: Path | None = None, every: int = 10,
                 keep: int = 3, generation: str = "1", program: Sequence[str] = ("-m", "trainer"),
                 environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.drain = folder / "drain"
        self.started = time.monotonic()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
        size = len(configs)
        self.processes = []
        for rank, config in enumerate(configs):
            file = folder / f"config-{rank}.json"
            file.write_text(json.dumps(config))
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "OMP_NUM_THREADS": 1,
                   "TORCHELASTIC_ERROR_FILE": folder / f"error-{rank}.json", "TRAINYARD_TRAIN_CONFIG": file,
                   "TRAINYARD_CHECKPOINT_EVERY": every, "TRAINYARD_CHECKPOINT_KEEP": keep,
                   "TRAINYARD_GENERATION": generation, "TRAINYARD_PROGRESS": self._progress(rank),
                   "TRAINYARD_DRAIN": self.drain, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer-image:{ROOT}/tests"}
            if checkpoint is not None:
                own["TRAINYARD_CHECKPOINT"] = checkpoint
            with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
                self.processes.append(subprocess.Popen(
                    [sys.executable, *program], stdout=out, stderr=err, cwd=folder,
                    env={**os.environ, **address, **{key: str(value) for key, value in own.items()},
                         **(environment or {})}))

    def _progress(self, rank: int) -> Path:
        return self.folder / f"progress-{rank}.json"

    def progress(self) -> dict[str, Any]:
        """What rank 0 last reported; empty before its first word."""
        try:
            content: dict[str, Any] = json.loads(self._progress(0).read_text())
            return content
        except FileNotFoundError:
            return {}

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        """Wait until rank 0 reports something; AssertionError if a rank ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.progress()
            if condition(found):
                return found
            assert all(process.poll() is None for process in self.processes), self.kill().text
            time.sleep(0.02)  # polled: the file is replaced by another program
        raise AssertionError(f"not within {seconds} s: {self.progress()}\n{self.kill().text}")

    def wait(self, seconds: float = 180) -> Ended:
        """Wait for the end of every rank."""
        deadline = time.monotonic() + seconds
        try:
            for process in self.processes:
                process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.kill().text}") from None
        return self._ended()

    def kill(self) -> Ended:
        """SIGKILL to every rank."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        return self._ended()

    def _ended(self) -> Ended:
        ranks = range(len(self.processes))
        return Ended([process.returncode for process in self.processes],
                     [(self.folder / f"out-{rank}").read_text() for rank in ranks],
                     [(self.folder / f"err-{rank}").read_text() for rank in ranks], time.monotonic() - self.started)

    def reason(self, rank: int) -> str:
        """The message in a rank's error file."""
        return str(json.loads((self.folder / f"error-{rank}.json").read_text())["message"]["message"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def train(folder: Path, config: dict[str, Any], ranks: int = 2, **settings: Any) -> Ended:
    """Run a gang to its end."""
    with Gang(folder, [config] * ranks, **settings) as gang:
        return gang.wait()
