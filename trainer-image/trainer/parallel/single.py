"""Without others that share its parameters a rank needs no FSDP2, which would copy them and gradients every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trainer.precision import DTYPES, Precision


def apply(model: Any, precision: Precision) -> None:
    """Let a meta model compute in `precision` with parameters that stay fp32, in place: block by block, so that no more
    than the blocks' own copies are there, and compiled blocks see nothing of it.

    What a block computes again in the backward pass is of that type, too, though its forward is called by torch then.
    As under FSDP2 so is everything between the modules; a parameter's gradient is converted to fp32 before
    micro-batches are added up."""
    if precision == "fp32":
        return
    blocks = list(model.model.layers)
    inside = {id(module) for block in blocks for module in block.modules()}
    for top in [*blocks, *(module for module in model.modules() if id(module) not in inside)]:
        parts = top.modules() if id(top) in inside else [top]
        found = [module for module in parts if any(one is not None for one in module._parameters.values())]
        if not found:
            continue
        again = getattr(top, "gradient_checkpointing", False)
        compiled = "forward" in vars(top)
        if again:
            top._gradient_checkpointing_func = _checkpoint(top._gradient_checkpointing_func, found, DTYPES[precision])
        top.forward = _Converted(found, top.forward, DTYPES[precision], top if again and not compiled else None)


class _Converted:
    """A module's forward, for the time of which parameters are of another type."""

    def __init__(self, modules: Sequence[nn.Module], forward: Any, dtype: torch.dtype,
                 unless: nn.Module | None = None) -> None:
        """`unless`: the module, if what it is computed with is converted inside of it while it trains."""
        self._modules, self._forward, self._dtype, self._unless = modules, forward, dtype, unless

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self._unless is not None and self._unless.training:
            return self._forward(*given, **named)
        kept = [(module._parameters, dict(module._parameters)) for module in self._modules]
        for parameters, own in kept:
            parameters.update({name: one.to(self._dtype) for name, one in own.items() if one is not None})
        try:
            return self._forward(*given, **named)
        finally:
            for parameters, own in kept:
                parameters.update(own)


def _checkpoint(checkpoint: Callable[..., Any], modules: Sequence[nn.Module], dtype: torch.dtype) -> Callable[..., Any]:
    """In the place of what transformers calls with a block's forward, to call it again in the backward pass: the first
    time must be like the second. A compiled block computes again with what it was called with."""
    def call(forward: Callable[..., Any], *given: Any) -> Any:
        return checkpoint(forward if torch.compiler.is_compiling() else _Converted(modules, forward, dtype), *given)

    return call
