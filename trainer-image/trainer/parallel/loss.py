"""Cross entropy, summed over tokens, over a vocabulary that is whole or spread over the ranks of a group.

Where a rank has the whole head, head and loss are one function, which computes some rows at a time, forward and
backward at once: the logits of a batch, often the largest tensor of a step, never exist. Where the vocabulary is
spread, or a pipeline's schedule computes the loss, there are logits in the type of computation, of which a few rows at
a time are converted to fp32."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.distributed as dist

CHUNK = 1 << 22  # logits that are converted to fp32 at a time: 16 MB
SOFTMAX_CHUNK = 1 << 18  # on a CPU: 1 MB, which stays in its cache
HEAD_CHUNK = {True: 1 << 24, False: 1 << 25}  # logits of the head at a time, in fp32 or not: 64 MB


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Sum of -log softmax(logits)[target], a scalar in fp32, the same at every rank of the group.

    logits: (..., vocabulary), or (..., vocabulary / ranks) with rank r of `group` holding the r-th part; targets:
    (...), in the whole vocabulary; those below 0 (padding) weigh nothing."""
    total: torch.Tensor = _CrossEntropy.apply(logits.flatten(0, -2), targets.flatten(), group)
    return total


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """The gradient of the logits is softmax - one-hot, computed again from logits and log-sum-exp."""

    @staticmethod
    def forward(context: Any, logits: torch.Tensor, targets: torch.Tensor, group: Any) -> torch.Tensor:
        rows, width = logits.shape
        start = width * dist.get_rank(group) if group is not None else 0
        here = targets - start
        mine = (here >= 0) & (here < width)
        here = torch.where(mine, here, 0)
        largest = logits.amax(-1).float()
        if group is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        sums = torch.empty(2, rows, dtype=torch.float32, device=logits.device)  # of exponentials; the target's logit
        for part in _parts(rows, width):
            torch.sum((logits[part].float() - largest[part, None]).exp_(), -1, out=sums[0, part])
        sums[1] = torch.where(mine, logits.gather(-1, here[:, None])[:, 0].float(), 0.0)
        if group is not None:
            dist.all_reduce(sums, group=group)
        log_sum = sums[0].log() + largest
        counts = targets >= 0
        context.save_for_backward(logits, log_sum, here, mine, counts)
        return torch.where(counts, log_sum - sums[1], 0.0).sum()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, log_sum, here, mine, counts = context.saved_tensors
        result = torch.empty_like(logits)
        for part in _parts(*logits.shape):
            chances = (logits[part].float() - log_sum[part, None]).exp_()
            chances.scatter_add_(-1, here[part, None], -mine[part, None].float())
            result[part] = chances.mul_(torch.where(counts[part, None], gradients[0], 0.0))
        return result, None, None


def make_callable(model: Any) -> None:
    """Let a meta model with its whole head be called with targets. It returns what head_loss_sum does, and the logits
    of a mixture's routers."""

    def forward(self: Any, input_ids: torch.Tensor, targets: torch.Tensor, factor: float,
                **given: Any) -> tuple[torch.Tensor, Any]:
        found = self.model(input_ids=input_ids, **given)
        loss = head_loss_sum(found.last_hidden_state, self.lm_head.weight, targets, factor)
        return loss, getattr(found, "router_logits", None)

    model.forward = types.MethodType(forward, model)


def head_loss_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float) -> torch.Tensor:
    """Sum of -log softmax(hidden @ weight.T)[target], a scalar in fp32. Its gradient is multiplied by `factor`: on the
    way, where that costs nothing.

    hidden: (..., width), in the type of computation; weight: (vocabulary, width), in that or in fp32; targets: (...),
    those below 0 (padding) weigh nothing."""
    total: torch.Tensor = _HeadLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), factor,
                                          torch.is_grad_enabled())
    return total


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Gradients are computed in the forward pass, while a chunk's logits are there."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float,
                train: bool) -> torch.Tensor:
        converted = weight.to(hidden.dtype)
        parts = _parts(len(hidden), len(weight), HEAD_CHUNK[hidden.dtype == torch.float32])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if train else None
        of_weight: torch.Tensor | None = None
        for part in parts:
            logits = hidden[part] @ converted.t()
            total += _loss_to_gradient(logits, targets[part], factor if train else None)
            if of_hidden is not None:
                torch.mm(logits, converted, out=of_hidden[part])
                of_weight = _add_product(of_weight, logits.t(), hidden[part], len(parts))
        if of_weight is not None:
            context.save_for_backward(of_hidden, of_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_weight = context.saved_tensors
        if gradients[0].device.type != "cpu" or gradients[0] != 1:  # the usual 1 needs no pass over the weight
            of_hidden, of_weight = of_hidden * gradients[0], of_weight * gradients[0]
        return of_hidden, of_weight, None, None, None


def _add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """`total` and one of `count` products; several of a lower precision are added up in fp32."""
    if total is None:
        product = left @ right
        return product if count == 1 else product.float()
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(left @ right)


def _loss_to_gradient(logits: torch.Tensor, targets: torch.Tensor, factor: float | None) -> torch.Tensor:
    """The summed loss of some rows; with `factor`, logits become their gradient times it, in place."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    counts = targets >= 0
    here = targets.clamp(min=0)[:, None]
    for part in _parts(len(logits), logits.shape[1], SOFTMAX_CHUNK if logits.device.type == "cpu" else CHUNK):
        logs = torch.log_softmax(logits[part], -1, dtype=torch.float32)
        total -= logs.gather(-1, here[part])[:, 0].where(counts[part], 0.0).sum()
        if factor is None:
            continue
        chances = logs.exp_().scatter_add_(-1, here[part], torch.full_like(here[part], -1, dtype=torch.float32))
        weights = torch.where(counts[part, None], factor, 0.0)
        if logits.dtype == torch.float32:
            torch.mul(chances, weights, out=logits[part])
        else:
            logits[part] = chances.mul_(weights)
    return total


def _parts(rows: int, width: int, numbers: int = CHUNK) -> list[slice]:
    """Slices of so many rows that they have no more than so many numbers, of about the same size."""
    count = -(-rows // max(1, numbers // width))
    step = -(-rows // max(1, count))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
