"""Cross entropy, summed over tokens, over a vocabulary that is whole or spread over the ranks of a group.

Logits are in the type of computation; fp32 is used for a few rows at a time, so that the fp32 logits of a batch, often
the largest tensor of a step, never exist."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

CHUNK = 1 << 22  # logits that are converted to fp32 at a time: 16 MB


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


def _parts(rows: int, width: int) -> list[slice]:
    step = max(1, CHUNK // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
