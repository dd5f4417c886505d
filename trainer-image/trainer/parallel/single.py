"""Without others that share its parameters a rank needs no FSDP2, which would copy them and gradients every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainer.precision import DTYPES, Precision


def apply(model: Any, precision: Precision) -> None:
    """Let a meta model compute in `precision` with parameters that stay fp32, in place: block by block, so that no more
    than the blocks' own copies are there, and compiled blocks see nothing of it.

    As under FSDP2 everything between the modules is of that type, too; a parameter's gradient is converted to fp32
    before micro-batches are added up."""
    if precision == "fp32":
        return
    blocks = list(model.model.layers)
    inside = {id(module) for block in blocks for module in block.modules()}
    for top in [*blocks, *(module for module in model.modules() if id(module) not in inside)]:
        parts = top.modules() if id(top) in inside else [top]
        found = [module for module in parts if any(one is not None for one in module._parameters.values())]
        if found:
            top.forward = _Converted(found, top.forward, DTYPES[precision])


class _Converted:
    """A module's forward, for the time of which parameters are of another type."""

    def __init__(self, modules: Iterable[nn.Module], forward: Any, dtype: torch.dtype) -> None:
        self._modules, self._forward, self._dtype = list(modules), forward, dtype

    def __call__(self, *given: Any, **named: Any) -> Any:
        kept = [(module._parameters, dict(module._parameters)) for module in self._modules]
        for parameters, own in kept:
            parameters.update({name: one.to(self._dtype) for name, one in own.items() if one is not None})
        try:
            return self._forward(*given, **named)
        finally:
            for parameters, own in kept:
                parameters.update(own)
