"""Runs a configuration on real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from trainyard.api.train import TrainConfig

PRELOADED = ["torch", "planner.rank", "torch.distributed.fsdp", "torch._dynamo", "torch.profiler",
             "torch.distributed.tensor.parallel", "torch.distributed.pipelining.schedules",
             "transformers.models.llama.configuration_llama", "transformers.models.llama.modeling_llama"]  # fmt: skip


def measure(what: str, asked: TrainConfig, ranks: int = 2, steps: int = 1,
            seconds: float = 300) -> list[dict[str, Any]]:  # fmt: skip
    """What each rank found. Raises RuntimeError if one failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "case.json").write_text(json.dumps({"what": what, "steps": steps, "train": asked.dump()}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made = []
        for rank in range(ranks):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port)}  # fmt: skip
            process = context.Process(target=_rank, args=(path, environment))
            process.start()
            made.append(process)
        for process in made:
            process.join(seconds)
        for process in made:
            if process.exitcode is None:
                process.kill()
                process.join()
        if any(process.exitcode for process in made):
            texts = "\n".join(log.read_text()[-1500:] for log in sorted(path.glob("log-*")))
            raise RuntimeError(f"exit codes {[process.exitcode for process in made]}:\n{texts}")
        return [json.loads((path / f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    log = os.open(folder / f"log-{environment['RANK']}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from planner.rank import main

    main(folder / "case.json", folder)
    os._exit(0)
