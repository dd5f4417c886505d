"""Real gangs of trainer processes, started with torchrun's environment as Trainyard's supervisor does."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import runpy
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
IMPORTS = f"{ROOT}/operator:{ROOT}/trainer-image:{ROOT}/tests"
# What a rank imports before its first step: seconds, which a process that only forks spends once for all tests.
PRELOADED = ["pytest", "torch", "trainer.pretrain", "train.gang", "torch.distributed.fsdp", "torch._dynamo",
             "transformers.models.llama.configuration_llama", "transformers.models.llama.modeling_llama"]
# A trainer that goes on only when a checkpoint is written: else the next is as late as that one is slow.
PUNCTUAL = """
import runpy, sys
from trainer.checkpoint.saver import Saver
start = Saver.start
def start_and_wait(self, *given, **named):
    start(self, *given, **named)
    self.wait()
Saver.start = start_and_wait
sys.argv = ["trainer"]
runpy.run_module("trainer", run_name="__main__")
"""
LOSS = re.compile(r"^step (\d+)/\d+ loss (\S+) norm (\S+) ", re.MULTILINE)


def port() -> int:
    """A free TCP port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def become(program: Sequence[str], environment: dict[str, str], folder: Path, rank: int) -> None:
    """What a forked process does to be `python PROGRAM...`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    option, what, *arguments = program
    sys.argv = [what, *arguments]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<test>", "exec"), {"__name__": "__main__"})


class Forked:
    """A rank forked from a process that has imported everything already."""

    def __init__(self, program: Sequence[str], environment: dict[str, str], folder: Path, rank: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        (folder / f"out-{rank}").touch()
        (folder / f"err-{rank}").touch()
        self._process = context.Process(target=become, args=(list(program), environment, folder, rank))
        before = dict(os.environ)
        os.environ.update(PYTHONPATH=IMPORTS, OMP_NUM_THREADS="1")  # for the process that forks, when it is started
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)

    @property
    def returncode(self) -> int | None:
        """As subprocess has it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Likewise."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Likewise."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Likewise."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


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
    """Ranks of one generation; ended by force when the block is left. With `fresh` each is a Python started anew."""

    def __init__(self, folder: Path, configs: Sequence[dict[str, Any]], checkpoint: Path | None = None, every: int = 10,
                 keep: int = 3, generation: str = "1", program: Sequence[str] = ("-m", "trainer"),
                 environment: dict[str, str] | None = None, fresh: bool = False,
                 of_rank: Callable[[int], dict[str, str]] = lambda rank: {}) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.drain = folder / "drain"
        self.started = time.monotonic()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
        size = len(configs)
        self.processes: list[subprocess.Popen[bytes] | Forked] = []
        for rank, config in enumerate(configs):
            file = folder / f"config-{rank}.json"
            file.write_text(json.dumps(config))
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "OMP_NUM_THREADS": 1,
                   "TORCHELASTIC_ERROR_FILE": folder / f"error-{rank}.json", "TRAINYARD_TRAIN_CONFIG": file,
                   "TRAINYARD_CHECKPOINT_EVERY": every, "TRAINYARD_CHECKPOINT_KEEP": keep,
                   "TRAINYARD_GENERATION": generation, "TRAINYARD_PROGRESS": self._progress(rank),
                   "TRAINYARD_DRAIN": self.drain, "PYTHONPATH": IMPORTS}
            if checkpoint is not None:
                own["TRAINYARD_CHECKPOINT"] = checkpoint
            full = {**os.environ, **address, **{key: str(value) for key, value in own.items()}, **(environment or {}),
                    **of_rank(rank)}
            if not fresh:
                self.processes.append(Forked(program, full, folder, rank))
                continue
            with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
                self.processes.append(subprocess.Popen([sys.executable, *program], stdout=out, stderr=err, cwd=folder,
                                                       env=full))

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
        return Ended([process.wait() for process in self.processes],
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
