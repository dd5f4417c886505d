"""The planner's parameters a rank against what the trainer itself makes of LLaMA2 7B to 70B and Mixtral 8x7B: its own
parallelize(), on the meta device, as one rank of a gang that exists in torch's accounting alone (the process group
`fake`)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train.gang import IMPORTS
from trainyard.api.train import TrainConfig
from trainyard.layout import HARDWARE, choose, of_train, settle
from trainyard.layout.memory import state_bytes

# The numbers of every rank of a pipeline, in one process: argv[1] is a TrainConfig with everything set.
ACCOUNT = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from trainer import config as configs
from trainer.model import build, shape
from trainer.parallel import layout as layouts
from trainer.parallel.apply import parallelize
from trainer.parallel.mesh import Mesh
from trainyard.api.train import TrainConfig

train, ranks = TrainConfig.model_validate_json(sys.argv[1]), int(sys.argv[2])
fields = shape.fields(train.model)
layout = layouts.fit(configs.layout(train, ranks), fields, train.data.sequence_length)
complete, found = build.complete(fields), []
for stage in range(layout.pipeline):
    rank = stage * (ranks // layout.pipeline)
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    mesh = Mesh(layout, torch.device("cpu"), rank)
    model = parallelize(lambda: build.on_meta(complete), mesh, "bf16", train.activation_checkpointing)
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    assert all(p.dtype == torch.float32 for p in local)
    found.append(sum(p.numel() for p in local))
    dist.destroy_process_group()
print(json.dumps({"numbers": found, "whole": model.parameter_count}))
"""

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("7b", 32, {"data": 2, "shard": 4, "tensor": 4}),
    ("13b", 64, {"shard": 8, "context": 2, "tensor": 4}),
    ("70b", 128, {"shard": 4, "tensor": 8, "pipeline": 4}),
    ("70b", 512, {"data": 4, "shard": 8, "tensor": 8, "pipeline": 2, "schedule": "Interleaved1F1B"}),
    ("8x7b", 64, {"data": 2, "shard": 32, "expert": 8}),
    ("8x7b", 128, {"shard": 16, "tensor": 4, "pipeline": 2, "expert": 8}),
]


@pytest.mark.parametrize(("size", "ranks", "parallel"), CASES, ids=str)
def test_state_a_rank(tmp_path: Path, size: str, ranks: int, parallel: dict[str, Any]) -> None:
    train = TrainConfig.model_validate({
        "model": {"size": size, "family": "mixtral" if size == "8x7b" else "llama2"},
        "data": {"sources": [{"path": "/none"}], "sequenceLength": 4096}, "steps": 1,
        "batchSize": 1024, "microBatchSize": 1, "precision": "bf16", "parallel": parallel})  # fmt: skip
    work = of_train(train, ranks, 8, replace(HARDWARE["910B"], memory=0.0))
    assert work is not None
    chosen = choose(work).best.layout
    expected, settled = state_bytes(work.shape, chosen) / 12, json.dumps(settle(train, work, chosen).dump())
    ended = subprocess.run([sys.executable, "-c", ACCOUNT, settled, str(ranks)],
                           cwd=tmp_path, env={"PYTHONPATH": IMPORTS}, capture_output=True, text=True, timeout=300,
                           check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["whole"] == work.shape.parameters
    print(f"{size} {parallel}: {max(found['numbers']):,} numbers on the fullest rank, planned {expected:,.0f}")
    assert expected == pytest.approx(max(found["numbers"]), rel=0.002)  # norms are not counted, shards are padded
