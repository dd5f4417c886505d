"""Without others that share its parameters a rank needs no FSDP2, which would copy them and gradients every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.precision import DTYPES, Precision


def apply(model: Any, precision: Precision) -> None:
    """Let every module of a meta model compute in `precision` with parameters that stay fp32, in place.

    As under FSDP2 everything between the modules is of that type, too; a parameter's gradient is converted to fp32
    before micro-batches are added up."""
    if precision == "fp32":
        return
    for module in model.modules():
        if any(parameter is not None for parameter in module._parameters.values()):
            module.forward = _Converted(module, module.forward, DTYPES[precision])


class _Converted:
    """A module's forward, for the time of which its parameters are of another type."""

    def __init__(self, module: nn.Module, forward: Any, dtype: torch.dtype) -> None:
        self._module, self._forward, self._dtype = module, forward, dtype

    def __call__(self, *given: Any, **named: Any) -> Any:
        kept = dict(self._module._parameters)
        for name, parameter in kept.items():
            if parameter is not None:
                self._module._parameters[name] = parameter.to(self._dtype)
        try:
            return self._forward(*given, **named)
        finally:
            self._module._parameters.update(kept)
