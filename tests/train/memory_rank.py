"""One rank of test_memory.py: reads a model by slices and exports it, under a limit on the memory it may take."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch
from trainer import export
from trainer.config import rank_of
from trainer.distributed import connect
from trainer.model import build, shape, weights
from trainer.parallel.apply import parallelize
from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainyard.api.train import ModelConfig


def private_bytes() -> int:
    """Private writable memory of this process: what RLIMIT_DATA counts. Mapped files are not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def main(source: Path, output: Path, limit: int) -> None:
    """Read `source` or, if it is not there, draw a model of its config; write it to `output`."""
    torch.set_num_threads(1)
    gang = connect(rank_of(os.environ), None)
    fields = shape.fields(ModelConfig.model_validate({"path": str(source)}))
    config = build.complete(fields)
    build.on_meta(build.complete({**fields, "num_hidden_layers": 1}))  # imports all that it needs
    before = private_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (before + limit, before + limit))
    mesh = Mesh(Layout(shard=gang.world_size), gang.device, gang.rank)
    model = parallelize(lambda: build.on_meta(config), mesh, "fp32", "none")
    if (source / "model.safetensors.index.json").exists():
        build.give_weights(model, gang.device, lambda part: weights.read(part, source))
    else:
        build.give_weights(model, gang.device, lambda part: weights.draw(part, 1))
    export.write(model, output, gang, torch.float32, 1, shape.identity(fields), None, file_bytes=24 << 20)
    peak = int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("VmHWM")))
    print(f"private {(private_bytes() - before) >> 20} MB of {limit >> 20} allowed; peak resident {peak >> 10} MB",
          flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)
