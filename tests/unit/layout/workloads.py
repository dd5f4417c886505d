"""Workloads in a few words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainyard.api.train import ParallelConfig, TrainConfig
from trainyard.layout import HARDWARE, Workload, of_train

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 4096}  # fmt: skip


def train(size: str | None = None, config: dict[str, Any] | None = None, sequence: int = 4096,
          **fields: Any) -> TrainConfig:  # fmt: skip
    """A training configuration; fields in camelCase."""
    model = {"size": size} if size else {"config": {**TINY, **(config or {})}}
    return TrainConfig.model_validate({
        "model": model, "data": {"sources": [{"path": "/data"}], "sequenceLength": sequence}, "steps": 1, **fields,
    })  # fmt: skip


def workload(size: str | None = "7b", ranks: int = 8, device: str = "910B", per_node: int = 8,
             memory: float | None = None, parallel: dict[str, Any] | None = None,
             **fields: Any) -> Workload:  # fmt: skip
    """A workload of a published size, or (None) of a small model."""
    work = of_train(train(size, parallel=parallel or {}, **fields), ranks, per_node, HARDWARE[device])
    assert work is not None
    return work if memory is None else replace(work, hardware=replace(work.hardware, memory=memory))


def asking(work: Workload, **parallel: Any) -> Workload:
    """The same with these fields of `parallel` set, in snake_case."""
    return replace(work, asked=ParallelConfig(**parallel))
