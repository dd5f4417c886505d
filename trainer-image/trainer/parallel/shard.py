"""FSDP2: parameters, gradients and optimizer state sharded over shard x context ranks, replicated `data` times."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from trainer.parallel import single
from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainer.parallel.pipeline import present
from trainer.precision import DTYPES, Precision


def apply(model: Any, mesh: Mesh, precision: Precision) -> None:
    """Shard a meta model by block, then the rest (embedding, last norm, head), in place. Parameters stay fp32;
    `precision` is the type of computation. Gradients are reduced in fp32.

    ZeRO-3 gathers a block's parameters again for the backward pass, ZeRO-2 keeps them from the forward pass on. With
    nobody to share them with there is nothing to shard."""
    if not mesh.layout.shares_parameters:
        return single.apply(model, precision)
    policy = MixedPrecisionPolicy()
    if precision != "fp32":
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32)
    again = mesh.layout.zero == 3
    layout, as_they_come = mesh.layout, replace(policy, cast_forward_inputs=False)
    for block in present(model):
        if mesh.expert_sharding is not None:  # the weights that results are multiplied with come in fp32, and stay so
            fully_shard(block.mlp.experts, mesh=mesh.expert_sharding, reshard_after_forward=again,
                        mp_policy=as_they_come,
                        shard_placement_fn=partial(_dimension, ranks=layout.expert_holders // layout.expert))
        fully_shard(block, mesh=mesh.sharding, mp_policy=policy, reshard_after_forward=again,
                    shard_placement_fn=partial(_dimension, ranks=layout.sharding_ranks))
    # between stages hidden states are of the right type already, and what is counted of routers stays fp32
    fully_shard(model, mesh=mesh.sharding, mp_policy=policy if layout.pipeline == 1 else as_they_come,
                reshard_after_forward=False)
    return None


def _dimension(parameter: torch.Tensor, ranks: int) -> Shard | None:
    """The dimension to cut. Experts are stacked, there are few of them: where they do not go evenly over the ranks,
    each is cut by its rows."""
    if parameter.dim() < 3:
        return None
    here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return Shard(1) if here.shape[0] % ranks and here.shape[1] % ranks == 0 else None


def reduce_scatter(output: torch.Tensor, given: torch.Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
    """Rank r of the group gets the sum (or mean) of everybody's r-th part. gloo would reduce all parts at every rank:
    here each part goes to its rank only, half the bytes."""
    if given.device.type != "cpu" or op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
        return dist.reduce_scatter_tensor(output, given, group=group, op=op, async_op=async_op)
    parts = torch.empty_like(given)
    dist.all_to_all_single(parts, given, group=group)
    torch.sum(parts.view(group.size(), -1), 0, out=output)
    if op == dist.ReduceOp.AVG:
        output.div_(group.size())
    return None


def accumulate(model: Any, layout: Layout, last: bool) -> None:
    """Before a micro-batch: what is done with its gradients.

    Shards are reduced after each one, for else every rank would hold the gradients of the whole model until the `last`
    one of a step. Replicas add up what they have after the last one only. Experts can be shards where nothing else
    is."""
    if not layout.shares_parameters:
        return
    if layout.sharding_ranks == 1:
        model.set_requires_gradient_sync(last)
        for block in present(model) if layout.expert_holders > layout.expert else ():
            if hasattr(block.mlp, "experts"):
                block.mlp.experts.set_requires_gradient_sync(True, recurse=False)
    elif layout.data > 1:
        model.set_requires_all_reduce(last)
