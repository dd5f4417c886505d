"""The experts of a mixture, shared out over ranks, and the loss that keeps them evenly busy.

Every token goes to its experts wherever they are, and its results come back; none is dropped, unless a capacity is set
(capacity.py). transformers' module calls compute() in place of its own loop over experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

from trainer.parallel import capacity
from trainer.parallel.mesh import Mesh
from trainer.parallel.pipeline import present

NAME = "trainyard"


def register() -> str:
    """Tell transformers; returns the name for a config's experts implementation."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, compute)
    return NAME


def apply(model: Any, mesh: Mesh) -> None:
    """Leave each rank its experts of a meta MixtralForCausalLM, or a stage of one, in place: of stacked weights
    (experts, rows, columns) rank r of those that share them out has the r-th part. Nothing is sent."""
    for block in present(model):
        experts = block.mlp.experts
        experts.trainyard_tensor = mesh.layout.tensor
        if mesh.expert is None:
            continue
        for name, parameter in list(experts.named_parameters(recurse=False)):
            experts.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh.expert, [Shard(0)],
                                                                            src_data_rank=None)))
        experts.trainyard_group = mesh.expert.get_group()


def limit(model: Any, factor: float, group: Any) -> None:
    """Give the experts of a MixtralForCausalLM a capacity, in training: `factor` times their even share. `group`: ranks
    that have the same layers; None: all."""
    for block in present(model):
        block.mlp.experts.trainyard_capacity = factor, group


def compute(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What transformers calls. hidden: (tokens, width); chosen: (tokens, k), the experts of each token; weights:
    likewise, what their results are multiplied with. Returns the shape of hidden."""
    tokens, each = chosen.shape
    group = getattr(module, "trainyard_group", None)
    places = getattr(module, "trainyard_places", None)  # an expert's number is its place, unless experts have moved
    flat = (chosen if places is None else places[chosen]).flatten()
    order = flat.argsort(stable=True)
    limited = getattr(module, "trainyard_capacity", None) if module.training else None
    if limited is not None:
        factor, rivals = limited
        most = capacity.limit(factor, flat.numel() * dist.get_world_size(rivals), module.num_experts)
        order = order[capacity.kept(flat, weights.flatten(), module.num_experts, most, rivals)[order]]
    counts = torch.bincount(flat[order], minlength=module.num_experts)
    rows = hidden[order // each]
    # FSDP2 averages an expert's gradient over all that have a part of it. It is to be the sum over the ranks of the
    # expert's group, which see the tokens of each other, and over those of a tensor group, which have tokens each.
    divisor = (1 if group is None else dist.get_world_size(group)) / getattr(module, "trainyard_tensor", 1)
    results = _here(module, rows, counts.tolist(), divisor) if group is None else \
        _there(module, rows, counts, group, divisor)
    if limited is None:
        results = results[order.argsort()]
    else:  # nothing comes back for what was dropped
        results = results.new_zeros(flat.numel(), results.shape[1]).index_copy(0, order, results)
    return (results.view(tokens, each, -1) * weights[..., None]).sum(1).to(hidden.dtype)


def _here(module: Any, rows: torch.Tensor, counts: Sequence[int], divisor: float) -> torch.Tensor:
    """The results of this rank's experts; `rows` are sorted by expert. One that gets no rows has gradients of zero.
    Gradients of weights are divided by `divisor`."""
    inner, outer = (_local(weight, divisor).unbind() for weight in (module.gate_up_proj, module.down_proj))
    results = []
    for part, first, second in zip(rows.split(list(counts)), inner, outer, strict=True):
        gate, up = functional.linear(part, first).chunk(2, -1)
        results.append(functional.linear(module.act_fn(gate) * up, second))
    return torch.cat(results)


def _there(module: Any, rows: torch.Tensor, counts: torch.Tensor, group: Any, divisor: float) -> torch.Tensor:
    """Send rows, sorted by expert, to the ranks of their experts, and get the results, in the same order."""
    ranks = dist.get_world_size(group)
    theirs = torch.empty_like(counts)
    dist.all_to_all_single(theirs, counts, group=group)
    both = torch.stack((counts, theirs)).view(2, ranks, -1)
    give, take = both.sum(-1).tolist()
    by_expert = both[1].sum(0).tolist()
    rows = _Exchange.apply(rows, give, take, group)
    # they come by rank, and from each by expert
    numbers = torch.arange(both.shape[2], device=rows.device).repeat(ranks)
    order = numbers.repeat_interleave(theirs, output_size=rows.shape[0]).argsort(stable=True)
    results = _here(module, rows[order], by_expert, divisor)
    sent: torch.Tensor = _Exchange.apply(results[order.argsort()], take, give, group)
    return sent


def _local(weight: torch.Tensor, divisor: float) -> torch.Tensor:
    plain = weight.to_local() if isinstance(weight, DTensor) else weight
    divided: torch.Tensor = plain if divisor == 1 else _DividedGradient.apply(plain, divisor)
    return divided


class _DividedGradient(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """The tensor itself. The gradient is divided in place: unbind() made it, nobody else has it."""

    @staticmethod
    def forward(saved: Any, tensor: torch.Tensor, divisor: float) -> torch.Tensor:
        saved.divisor = divisor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].div_(saved.divisor), None


class _Exchange(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """All-to-all of rows: `give[r]` of them go to rank r, `take[r]` come from it. Its gradient is the way back."""

    @staticmethod
    def forward(saved: Any, rows: torch.Tensor, give: list[int], take: list[int], group: Any) -> torch.Tensor:
        saved.way_back = take, give, group
        return _swap(rows, give, take, group)

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _swap(gradients[0], *saved.way_back), None, None, None


def _swap(rows: torch.Tensor, give: list[int], take: list[int], group: Any) -> torch.Tensor:
    received = rows.new_empty((sum(take), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), take, give, group=group, async_op=True).wait()  # see waits.py
    return received


def balance_sum(logits: Sequence[torch.Tensor], chosen: int, weight: float,
                ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """balance() of a rank that has all layers, and a part of the tokens of all `ranks`; and the tokens that each expert
    got: (layers, experts).

    logits: of the router, (tokens, experts) a layer."""
    chances, load = routed(logits, chosen)
    if ranks > 1:
        dist.all_reduce(load)
    return balance(chances, load.sum(0), weight, len(logits), len(logits[0]) * ranks), load


def routed(logits: Sequence[torch.Tensor], chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the balance of some layers is told by: the sum of each expert's probabilities, over layers and this rank's
    tokens, and the tokens that each expert got, (layers, experts)."""
    chances = torch.stack([layer.float().softmax(-1) for layer in logits])  # (layers, tokens, experts)
    picked = chances.detach().topk(chosen, -1).indices.flatten(1)
    load = torch.zeros(len(logits), chances.shape[2], device=chances.device).scatter_add_(
        1, picked, torch.ones(picked.shape, device=chances.device))
    return chances.sum((0, 1)), load


def balance(chances: torch.Tensor, picked: torch.Tensor, weight: float, layers: int, tokens: int) -> torch.Tensor:
    """A rank's part of the load-balancing loss, times `weight` and `tokens`, those of all ranks: in this form it is
    added to a loss that is summed over tokens. `chances`: of each expert, this rank's, summed over all `layers` and its
    tokens; `picked`: assignments to each expert, those of all ranks, likewise.

    The loss is that of transformers (Switch, https://arxiv.org/abs/2101.03961, equations 4 to 6): experts x sum over
    experts of the share of tokens that went to it x its mean probability, over all layers together. Shares are those
    of all ranks: the mean of the ranks' own losses would be another loss."""
    shares = picked / (layers * tokens)
    return weight * len(picked) / layers * (shares * chances).sum()
