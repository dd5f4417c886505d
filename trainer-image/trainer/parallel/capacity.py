"""A limit on the tokens of an expert. Those beyond it skip the expert: the block's residual connection is all they get
for it (GShard, https://arxiv.org/abs/2006.16668, section 2.2; Switch, https://arxiv.org/abs/2101.03961, section 2.2).

An expert keeps the tokens that want it most, by the weight that its result would be multiplied with; between equal
weights the earlier ones. Order alone, as in those papers, would always cut the end of a batch; V-MoE
(https://arxiv.org/abs/2106.05974, section 4) ranks tokens by weight for that reason. Capacity is that of a micro-batch
of all ranks that have the layer, whose tokens compete for it: so every layout drops what one process drops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

DIGIT = 10  # bits; fp32 numbers from 0 to 1 have three times as many, read as whole numbers in the same order
ROUNDS = 3


def limit(factor: float, assignments: int, experts: int) -> int:
    """Tokens of one expert at most: `factor` times its even share of the `assignments` of all ranks, rounded up."""
    return math.ceil(factor * assignments / experts)


def kept(chosen: torch.Tensor, weights: torch.Tensor, experts: int, most: int, group: Any = None) -> torch.Tensor:
    """Which of this rank's assignments stay: (n,) booleans for (n,) experts `chosen` and their `weights`, 0 to 1. Each
    expert keeps `most` over the ranks of `group` (None: all), the heaviest; of equal ones at the limit those of lower
    ranks, then the earlier.

    The limit is found digit by digit, from histograms that are added up over the ranks: some KB an expert, whatever
    the number of tokens. NaN counts as some weight or other."""
    keys = weights.detach().float().contiguous().view(torch.int32).long().clamp(0, (1 << (DIGIT * ROUNDS)) - 1)
    last = torch.zeros(experts, dtype=torch.int64, device=keys.device)  # first digits of the lightest that stays
    room = torch.full_like(last, most)  # for keys that begin like it
    fits = torch.zeros_like(last, dtype=torch.bool)
    for shift in range(DIGIT * (ROUNDS - 1), -1, -DIGIT):
        begins = (keys >> (shift + DIGIT)) == last[chosen]
        place = (chosen << DIGIT) + ((keys >> shift) & ((1 << DIGIT) - 1))
        counts = torch.zeros(experts << DIGIT, dtype=torch.int32, device=keys.device)
        counts.scatter_add_(0, place, begins.int())
        if dist.get_world_size(group) > 1:
            dist.all_reduce(counts, group=group)
        above = counts.view(experts, -1).flip(1).cumsum(1).flip(1)  # with this digit or a larger one
        digit = (above >= room[:, None]).sum(1) - 1  # the largest that the room does not suffice beyond
        fits |= digit < 0
        digit.clamp_(min=0)
        beyond = torch.nn.functional.pad(above, (0, 1)).gather(1, digit[:, None] + 1)[:, 0]
        room -= torch.where(fits, 0, beyond)
        last = (last << DIGIT) + digit
    equal = (keys == last[chosen]) & ~fits[chosen]
    return fits[chosen] | (keys > last[chosen]) | (equal & (_number(equal, chosen, experts, group) < room[chosen]))


def _number(marked: torch.Tensor, chosen: torch.Tensor, experts: int, group: Any) -> torch.Tensor:
    """How many marked assignments to the same expert come before each: lower ranks', then this rank's own."""
    mine = torch.zeros(experts, dtype=torch.int64, device=chosen.device).scatter_add_(0, chosen, marked.long())
    before = torch.zeros_like(mine)
    if dist.get_world_size(group) > 1:
        everybody = mine.new_empty(dist.get_world_size(group) * experts)
        dist.all_gather_into_tensor(everybody, mine, group=group)
        before = everybody.view(-1, experts)[:dist.get_rank(group)].sum(0)
    order = chosen.argsort(stable=True)
    counted = marked[order].long()
    earlier = counted.cumsum(0) - counted - (mine.cumsum(0) - mine)[chosen[order]]
    return torch.empty_like(earlier).scatter_(0, order, earlier) + before[chosen]
