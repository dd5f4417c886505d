"""The experts of a mixture, shared out over ranks, and the loss that keeps them evenly busy.

Every token goes to its experts wherever they are, and its results come back; none is dropped, unless a capacity is set
(capacity.py). transformers' module calls compute() in place of its own loop over experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

from trainer.parallel import capacity

NAME = "trainyard"


def register() -> str:
    """Tell transformers; returns the name for a config's experts implementation."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, compute)
    return NAME


def apply(model: Any, mesh: DeviceMesh) -> None:
    """Leave each rank of `mesh` its experts of a meta MixtralForCausalLM, in place: of stacked weights (experts, rows,
    columns) rank r has the r-th part. Nothing is sent."""
    for block in model.model.layers:
        experts = block.mlp.experts
        for name, parameter in list(experts.named_parameters(recurse=False)):
            experts.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)],
                                                                            src_data_rank=None)))
        experts.trainyard_group = mesh.get_group()


def limit(model: Any, factor: float) -> None:
    """Give the experts of a MixtralForCausalLM a capacity, in training: `factor` times their even share."""
    for block in model.model.layers:
        block.mlp.experts.trainyard_capacity = factor


def compute(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What transformers calls. hidden: (tokens, width); chosen: (tokens, k), the experts of each token; weights:
    likewise, what their results are multiplied with. Returns the shape of hidden."""
    tokens, each = chosen.shape
    group = getattr(module, "trainyard_group", None)
    places = getattr(module, "trainyard_places", None)  # an expert's number is its place, unless experts have moved
    flat = (chosen if places is None else places[chosen]).flatten()
    order = flat.argsort(stable=True)
    factor = getattr(module, "trainyard_capacity", None) if module.training else None
    if factor is not None:
        most = capacity.limit(factor, flat.numel() * dist.get_world_size(), module.num_experts)
        order = order[capacity.kept(flat, weights.flatten(), module.num_experts, most)[order]]
    counts = torch.bincount(flat[order], minlength=module.num_experts)
    rows = hidden[order // each]
    results = _here(module, rows, counts.tolist()) if group is None else _there(module, rows, counts, group)
    if factor is None:
        results = results[order.argsort()]
    else:  # nothing comes back for what was dropped
        results = results.new_zeros(flat.numel(), results.shape[1]).index_copy(0, order, results)
    return (results.view(tokens, each, -1) * weights[..., None]).sum(1).to(hidden.dtype)


def _here(module: Any, rows: torch.Tensor, counts: Sequence[int], divisor: int = 1) -> torch.Tensor:
    """The results of this rank's experts; `rows` are sorted by expert. One that gets no rows has gradients of zero.
    Gradients of weights are divided by `divisor`."""
    inner, outer = (_local(weight, divisor).unbind() for weight in (module.gate_up_proj, module.down_proj))
    results = []
    for part, first, second in zip(rows.split(list(counts)), inner, outer, strict=True):
        gate, up = functional.linear(part, first).chunk(2, -1)
        results.append(functional.linear(module.act_fn(gate) * up, second))
    return torch.cat(results)


def _there(module: Any, rows: torch.Tensor, counts: torch.Tensor, group: Any) -> torch.Tensor:
    """Send rows, sorted by expert, to the ranks of their experts, and get the results, in the same order.

    An expert sees the tokens of all ranks of the group, so its gradient is a sum over them, while FSDP2 averages over
    the other ranks only: it is divided here."""
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
    results = _here(module, rows[order], by_expert, ranks)
    sent: torch.Tensor = _Exchange.apply(results[order.argsort()], take, give, group)
    return sent


def _local(weight: torch.Tensor, divisor: int) -> torch.Tensor:
    plain = weight.to_local() if isinstance(weight, DTensor) else weight
    divided: torch.Tensor = plain if divisor == 1 else _DividedGradient.apply(plain, divisor)
    return divided


class _DividedGradient(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """The tensor itself. The gradient is divided in place: unbind() made it, nobody else has it."""

    @staticmethod
    def forward(saved: Any, tensor: torch.Tensor, divisor: int) -> torch.Tensor:
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
    """This rank's part of the load-balancing loss, times `weight` and the tokens of all `ranks`: in this form it is
    added to a loss that is summed over tokens. And the tokens that each expert got: (layers, experts).

    logits: of the router, (tokens, experts) a layer. The loss is that of transformers (Switch,
    https://arxiv.org/abs/2101.03961, equations 4 to 6): experts x sum over experts of the share of tokens that went
    to it x its mean probability, over all layers together. Shares are those of all ranks: the mean of the ranks' own
    losses would be another loss."""
    chances = torch.stack([layer.float().softmax(-1) for layer in logits])  # (layers, tokens, experts)
    layers, tokens, experts = chances.shape
    picked = chances.detach().topk(chosen, -1).indices.flatten(1)
    load = torch.zeros(layers, experts, device=chances.device).scatter_add_(
        1, picked, torch.ones(picked.shape, device=chances.device))
    if ranks > 1:
        dist.all_reduce(load)
    shares = load.sum(0) / (layers * tokens * ranks)
    return weight * experts / layers * (shares * chances.sum((0, 1))).sum(), load
