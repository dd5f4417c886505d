"""Configurations that are run, and what the planner says of them."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

from trainyard.api.train import TrainConfig
from trainyard.layout import HARDWARE, Estimate, InvalidLayout, Workload, choose, of_train, settle

# Two ranks, each of these in turn.
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"shard": 2, "zero": 3}, {"tensor": 2}, {"pipeline": 2}, {"context": 2, "ulysses": 2}, {"shard": 2, "zero": 2},
    {"data": 2}, {"context": 2, "ulysses": 1}, {"pipeline": 2, "schedule": "ZBV"},
    {"pipeline": 2, "schedule": "Interleaved1F1B"},
)  # fmt: skip
# One, two and four ranks: schedules with FSDP2 around them, and what a rank copies that has no others to share with.
PRODUCTS: tuple[dict[str, Any], ...] = tuple(
    {"parallel": parallel, "precision": precision, "activationCheckpointing": again, "batchSize": batch}
    for parallel, precision, again, batch in (
        ({}, "bf16", "none", 2),
        ({"pipeline": 2}, "bf16", "none", 8),
        ({"pipeline": 2, "shard": 2, "zero": 3, "schedule": "1F1B"}, "fp32", "full", 8),
        ({"pipeline": 2, "shard": 2, "zero": 2, "schedule": "1F1B"}, "bf16", "full", 8),
        ({"pipeline": 2, "shard": 2, "zero": 3, "schedule": "Interleaved1F1B"}, "fp32", "none", 8),
        ({"pipeline": 2, "shard": 2, "zero": 2, "schedule": "ZBV"}, "bf16", "full", 8),
        ({"pipeline": 2, "data": 2, "schedule": "1F1B"}, "fp32", "full", 8),
        ({"pipeline": 2, "tensor": 2, "schedule": "1F1B"}, "bf16", "full", 8),
        ({"shard": 2, "tensor": 2}, "bf16", "none", 4),
        ({"data": 2, "tensor": 2}, "fp32", "full", 4),
    )
)
LEAST = 360e6  # bytes
ONES = {"data": 1, "shard": 1, "tensor": 1, "pipeline": 1, "context": 1}


def train(config: dict[str, int], sequence: int, **fields: Any) -> TrainConfig:
    """A configuration of a model; fields in camelCase."""
    return TrainConfig.model_validate({
        "model": {"config": config}, "data": {"sources": [{"path": "/none"}], "sequenceLength": sequence}, "steps": 1,
        **fields,
    })  # fmt: skip


def memory_case(number: int) -> TrainConfig:
    """The number-th random configuration, the same each time, of about 150 to 1,000 MB of tensors a rank."""
    draw = random.Random(number)
    heads = draw.choice([4, 8])
    config = {
        "hidden_size": heads * 64, "intermediate_size": draw.choice([704, 1024, 1408]),
        "num_hidden_layers": draw.choice([4, 6, 8]), "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([2, 4]), "vocab_size": draw.choice([16384, 32000]),
        "max_position_embeddings": 2048,
    }  # fmt: skip
    layout = LAYOUTS[number % len(LAYOUTS)]
    micros = 4 if "pipeline" in layout else draw.choice([1, 2])
    micro = draw.choice([1, 2])
    data = layout.get("shard", 1) * layout.get("data", 1)
    return train(
        config, draw.choice([256, 512]), parallel={**ONES, **layout}, batchSize=micro * micros * data,
        microBatchSize=micro, precision=draw.choice(["fp32", "fp32", "bf16"]),
        activationCheckpointing=draw.choice(["none", "none", "selective", "full"]))  # fmt: skip


def product(number: int) -> tuple[TrainConfig, int]:
    """The configuration of a product, and its ranks."""
    asked = PRODUCTS[number]
    config = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
              "num_key_value_heads": 4, "vocab_size": 16384, "max_position_embeddings": 2048}  # fmt: skip
    ranks = math.prod(asked["parallel"].get(name, 1) for name in ONES)
    return train(config, 256, **{**asked, "parallel": {**ONES, **asked["parallel"]}}, microBatchSize=1), ranks


def large_cases(count: int) -> list[int]:
    """The first numbers of legal configurations, layout by layout in turn, that hold 300 MB of tensors even where the
    estimate is a sixth too high."""
    every = len(LAYOUTS)
    large = [filter(_is_large, itertools.count(first, every)) for first in range(every)]
    return [next(large[place % every]) for place in range(count)]


def _is_large(number: int) -> bool:
    try:
        return estimated(memory_case(number))[1].memory.tensors >= LEAST
    except InvalidLayout:  # what was drawn does not go together
        return False


def workload(asked: TrainConfig, ranks: int = 2) -> Workload:
    """The workload on this machine; no checkpoint is being copied."""
    found = of_train(asked, ranks, ranks, HARDWARE["CPU"])
    assert found is not None
    return replace(found, hardware=replace(found.hardware, host_copies=True))


def estimated(asked: TrainConfig, ranks: int = 2) -> tuple[TrainConfig, Estimate]:
    """The configuration, complete, and its estimate."""
    work = workload(asked, ranks)
    best = choose(work).best
    return settle(asked, work, best.layout), best
