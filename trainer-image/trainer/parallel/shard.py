"""FSDP2: parameters, gradients and optimizer state sharded over shard x context ranks, replicated `data` times."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainer.parallel.pipeline import Absent
from trainer.precision import DTYPES, Precision


def apply(model: Any, mesh: Mesh, precision: Precision) -> None:
    """Shard a meta model by block, then the rest (embedding, last norm, head), in place. Parameters stay fp32;
    `precision` is the type of computation. Gradients are reduced in fp32.

    ZeRO-3 gathers a block's parameters again for the backward pass, ZeRO-2 keeps them from the forward pass on."""
    policy = MixedPrecisionPolicy()
    if precision != "fp32":
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32)
    for block in model.model.layers:
        if not isinstance(block, Absent):
            fully_shard(block, mesh=mesh.sharding, mp_policy=policy, reshard_after_forward=mesh.layout.zero == 3)
    fully_shard(model, mesh=mesh.sharding, mp_policy=policy, reshard_after_forward=False)


def accumulate(model: Any, layout: Layout, last: bool) -> None:
    """Before a micro-batch: what is done with its gradients.

    Shards are reduced after each one, for else every rank would hold the gradients of the whole model until the `last`
    one of a step. Replicas add up what they have after the last one only."""
    if layout.sharding_ranks == 1:
        model.set_requires_gradient_sync(last)
    elif layout.data > 1:
        model.set_requires_all_reduce(last)
