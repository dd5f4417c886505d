"""What every parity case trains on: a tiny model and samples that are a function of their number."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

STEPS = 5
LENGTH = 32
BATCH = 8
MODEL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.08}
MIXTURE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1}
"""For the family mixtral: a loss that balances experts more than usual, so that mistakes in it are seen."""


def config(ranks: int = 1, documents: bool = False, parts: int = 1, **fields: Any) -> dict[str, Any]:
    """A TrainConfig; `model` is laid over MODEL, everything else over the rest. A mixture of
    experts computes the batch in as many `parts`: experts are balanced over a micro-batch of all ranks."""
    family = fields.pop("family", "llama2")
    model = {**MODEL, **(MIXTURE if family == "mixtral" else {}), **fields.pop("model", {})}
    spread = fields.get("parallel", {})
    batch_ranks = ranks // prod(spread.get(name, 1) for name in ("tensor", "context", "pipeline"))
    if family == "mixtral":
        fields.setdefault("microBatchSize", BATCH // (batch_ranks * parts))
    if "tensor" in spread:  # DTensors cost milliseconds a micro-batch: two, or four of a pipeline, will do
        fields.setdefault("microBatchSize", max(1, BATCH // ((4 if "pipeline" in spread else 2) * batch_ranks)))
    return {"model": {"family": family, "size": "tiny", "config": model},
            "data": {"sources": [{"path": "/none"}], "sequenceLength": LENGTH, "documentMask": documents},
            "steps": 100, "batchSize": BATCH,
            "optimizer": {"learningRate": 1e-3, "warmupSteps": 1}, "seed": 3, **fields}


class Samples:
    """In the place of trainer.data.batches.Batches."""

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, (samples, LENGTH) each."""
        tokens = torch.stack([self._sample(int(number)) for number in numbers])
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Which document each input is of: two or three a sample, one of them a few tokens long."""
        return torch.stack([self._documents(int(number)) for number in numbers])

    def _documents(self, number: int) -> torch.Tensor:
        begins = [(LENGTH + 7 * number) // 3 % LENGTH, (5 + 11 * number) % LENGTH]
        begun = torch.zeros(LENGTH, dtype=torch.int64)
        begun[begins] = 1
        return begun.cumsum(0)

    def _sample(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + number)
        return torch.randint(0, MODEL["vocab_size"], (LENGTH + 1,), generator=generator)
