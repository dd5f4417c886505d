"""How the model is spread over the ranks: FSDP2 over `shard` ranks, replicated `data` times (HSDP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainer.config import Layout
from trainer.precision import DTYPES, Precision


def mesh(layout: Layout, device: torch.device) -> DeviceMesh:
    """The device mesh: dimension `shard`, and `replicate` before it if there is more than one replica."""
    if layout.data == 1:
        return init_device_mesh(device.type, (layout.shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (layout.data, layout.shard), mesh_dim_names=("replicate", "shard"))


def apply(model: Any, over: DeviceMesh, precision: Precision, activation_checkpointing: str) -> None:
    """Make a meta LlamaForCausalLM a sharded one, in place: first checkpointing, then FSDP2 by block, then the rest
    (embedding, last norm, head). Parameters stay fp32; `precision` is the type of computation. Gradients are reduced
    in fp32."""
    if activation_checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = MixedPrecisionPolicy()
    if precision != "fp32":
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32)
    for block in model.model.layers:
        fully_shard(block, mesh=over, mp_policy=policy)
    fully_shard(model, mesh=over, mp_policy=policy, reshard_after_forward=False)


def accumulate(model: Any, layout: Layout, last: bool) -> None:
    """Before a micro-batch: what is done with its gradients.

    Shards are reduced after each one, for else every rank would hold the gradients of the whole model until the `last`
    one of a step. Replicas add up what they have after the last one only."""
    if layout.shard == 1:
        model.set_requires_gradient_sync(last)
    elif layout.data > 1:
        model.set_requires_all_reduce(last)


def parameter_count(model: nn.Module) -> int:
    """Numbers in the whole model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
