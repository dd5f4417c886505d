"""Activation checkpointing: what a block keeps from forward to backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# Costly to compute again: products of matrices, attention, and whatever crosses the network. Norms, activations,
# rotary embedding and additions are not.
KEPT = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_", "_c10d_functional::",
        "c10d_functional::", "npu::npu_fusion_attention")


def apply(model: Any, kind: str) -> None:
    """Make a model's blocks compute again in the backward pass what they do not keep. none: they keep everything;
    full: their input alone; selective: the results of costly operators too."""
    if kind == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _policy(_context: Any, operator: Any, *_arguments: Any, **_named: Any) -> CheckpointPolicy:
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else str(operator)
    return CheckpointPolicy.MUST_SAVE if name.startswith(KEPT) else CheckpointPolicy.PREFER_RECOMPUTE
