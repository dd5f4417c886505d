"""AdamW over each rank's local shards, its learning rate, and what clipping needs.

The update of AdamW is elementwise, so it needs no communication: running it on plain local tensors instead of
DTensors saves the dispatch of every operation (1.3 s of a restarted rank's first step)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from trainyard.api.train import OptimizerConfig

FUSED_DEVICES = ("cpu", "cuda")  # devices with torch's fused AdamW kernel


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate of `step` (1 is the first, `steps` the last): linear warm-up, then a cosine to the minimum."""
    warmup = config.warmup_steps if config.warmup_steps is not None else min(max(steps // 50, 1), 2000)
    low = config.min_learning_rate if config.min_learning_rate is not None else config.learning_rate / 10
    if step <= warmup:
        return config.learning_rate * step / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return low + (config.learning_rate - low) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class _Group:
    """Parameters that share a weight decay, with their moments: all plain tensors of this rank's shards."""

    parameters: list[nn.Parameter]
    weight_decay: float
    first: list[torch.Tensor]
    second: list[torch.Tensor]


class AdamW:
    """AdamW with decoupled weight decay. `updates` counts the updates made (skipped fp16 steps are none)."""

    def __init__(self, model: Any, config: OptimizerConfig) -> None:
        self._config = config
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(False)}
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in model.parameters():
            matrix = parameter.dim() > 1 and id(parameter) not in embeddings
            (decayed if matrix else plain).append(parameter)
        device = torch.device("cpu") if config.offload else next(iter(model.parameters())).device
        self._groups = [self._group(decayed, config.weight_decay, device), self._group(plain, 0.0, device)]
        self._fused = device.type in FUSED_DEVICES
        self._count = torch.zeros((), dtype=torch.float32, device=device)
        self.updates = 0

    def _group(self, parameters: list[nn.Parameter], weight_decay: float, device: torch.device) -> _Group:
        def zeros() -> list[torch.Tensor]:
            return [torch.zeros_like(_local(parameter), device=device) for parameter in parameters]

        return _Group(parameters, weight_decay, zeros(), zeros())

    def squared_norm(self, copies: Callable[[torch.Tensor], int] = lambda _: 1) -> torch.Tensor:
        """Sum of the squares of the local gradients, one number on the device. `copies` says how many ranks hold the
        same part of a parameter: each is divided by it, so that the sum over all ranks counts everything once.

        By rows first: one fp32 sum over millions of numbers is off by 1e-4 and would depend on the layout."""
        exact = torch.float64
        rows: dict[int, list[torch.Tensor]] = {}
        for parameter in (p for group in self._groups for p in group.parameters if p.grad is not None):
            gradient = _local(parameter.grad)
            if gradient.device.type == "npu":
                exact = torch.float32  # it has no other
            if gradient.numel():
                rows.setdefault(copies(parameter), []).append(torch.linalg.vector_norm(gradient, dim=-1).flatten())
        parts = [torch.cat(norms).to(exact).square().sum() / count for count, norms in rows.items()]
        return torch.stack(parts).sum() if parts else self._count.new_zeros(())

    def step(self, rate: float, divide_gradients_by: float) -> None:
        """One update with gradients divided by `divide_gradients_by` (loss scale and clipping together)."""
        self.updates += 1
        self._count.fill_(self.updates)
        divisor = None
        if divide_gradients_by != 1.0:
            divisor = torch.tensor(divide_gradients_by, dtype=torch.float32, device=self._count.device)
        update = self._fused_update if self._fused else self._plain_update
        with torch.no_grad():
            for group in self._groups:
                kept = [i for i, p in enumerate(group.parameters) if p.grad is not None and _local(p).numel()]
                # offloaded one by one: no more than one parameter's copies are in the host's memory
                for chosen in [[i] for i in kept] if self._config.offload else [kept] if kept else []:
                    local = [_local(group.parameters[i]) for i in chosen]
                    weights = [tensor.to(self._count.device) for tensor in local]
                    gradients = [_local(group.parameters[i].grad).to(self._count.device) for i in chosen]
                    update(weights, gradients, [group.first[i] for i in chosen], [group.second[i] for i in chosen],
                           rate, group.weight_decay, divisor)
                    for tensor, weight in zip(local, weights, strict=True):
                        if tensor is not weight:  # it was copied
                            tensor.copy_(weight)

    def _fused_update(self, weights: list[torch.Tensor], gradients: list[torch.Tensor], first: list[torch.Tensor],
                      second: list[torch.Tensor], rate: float, decay: float, divisor: torch.Tensor | None) -> None:
        config = self._config
        torch._fused_adamw_(weights, gradients, first, second, [], [self._count] * len(weights), lr=rate,
                            beta1=config.beta1, beta2=config.beta2, weight_decay=decay, eps=config.epsilon,
                            amsgrad=False, maximize=False, grad_scale=divisor, found_inf=None)

    def _plain_update(self, weights: list[torch.Tensor], gradients: list[torch.Tensor], first: list[torch.Tensor],
                      second: list[torch.Tensor], rate: float, decay: float, divisor: torch.Tensor | None) -> None:
        """The same in foreach operations, for devices without the fused kernel."""
        config = self._config
        if divisor is not None:
            torch._foreach_div_(gradients, divisor)
        torch._foreach_mul_(weights, 1 - rate * decay)
        torch._foreach_lerp_(first, gradients, 1 - config.beta1)
        torch._foreach_mul_(second, config.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - config.beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, math.sqrt(1 - config.beta2**self.updates))
        torch._foreach_add_(roots, config.epsilon)
        torch._foreach_addcdiv_(weights, first, roots, -rate / (1 - config.beta1**self.updates))

    def zero_gradients(self) -> None:
        """Drop the gradients."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """First and second moments by parameter name, sharded like the parameters; they share storage with this
        optimizer, so loading into them restores it (with `updates`)."""
        moments: dict[str, dict[str, torch.Tensor]] = {"first_moment": {}, "second_moment": {}}
        for group in self._groups:
            for parameter, first, second in zip(group.parameters, group.first, group.second, strict=True):
                name = self._names[id(parameter)]
                moments["first_moment"][name] = _like(parameter, first)
                moments["second_moment"][name] = _like(parameter, second)
        return moments


def _local(tensor: Any) -> torch.Tensor:
    plain: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()
    return plain


def _like(parameter: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """`local` as the shard of a tensor laid out like `parameter`."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(local, parameter.device_mesh, parameter.placements, run_check=False,
                              shape=parameter.shape, stride=parameter.stride())
