"""Experts on ranks of their own compute what one process does, even where a rank gets no token at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from trainer.parallel import experts
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

RANKS, EXPERTS, TOKENS, WIDTH = 2, 4, 6, 8
ROUTES = {"even": [[0, 3], [1, 2], [2, 0], [3, 1], [0, 2], [1, 3]], "the second rank gets nothing": [[0, 1]] * TOKENS,
          "the first rank gets nothing": [[3, 2]] * TOKENS, "one expert gets all": [[1, 1]] * TOKENS}
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def module_of(implementation: str) -> Any:
    config = MixtralConfig(hidden_size=WIDTH, intermediate_size=12, num_local_experts=EXPERTS,
                           experts_implementation=implementation)
    module = MixtralExperts(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.double()


def compute(module: Any, tokens: slice, chosen: list[list[int]]) -> Found:
    """The result, and the gradients of hidden states, router's weights and both stacked parameters."""
    torch.manual_seed(2)
    hidden = torch.randn(RANKS * TOKENS, WIDTH, dtype=torch.float64)[tokens].requires_grad_()
    weights = torch.rand(RANKS * TOKENS, 2, dtype=torch.float64)[tokens].requires_grad_()
    result = module(hidden, torch.tensor(chosen), weights)
    result.square().sum().backward()
    for one in (hidden, weights, module.gate_up_proj, module.down_proj):
        assert one.grad is not None  # zeros, not nothing: ranks must agree on what is reduced
    return result.detach(), hidden.grad, weights.grad, module.gate_up_proj.grad, module.down_proj.grad


def rank_of(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    module = module_of(experts.register())
    own = slice(rank * EXPERTS // RANKS, (rank + 1) * EXPERTS // RANKS)
    for name, parameter in list(module.named_parameters()):
        module.register_parameter(name, torch.nn.Parameter(parameter.detach()[own].clone()))
    module.trainyard_group = dist.group.WORLD
    found = {}
    for route, chosen in ROUTES.items():
        module.zero_grad()
        found[route] = compute(module, slice(rank * TOKENS, (rank + 1) * TOKENS), chosen)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_experts_of_two_ranks(tmp_path: Path) -> None:
    spawn(rank_of, (str(tmp_path),), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for route, chosen in ROUTES.items():
        right = compute(module_of("eager"), slice(None), chosen * RANKS)
        for number in range(5):
            found = torch.cat([one[route][number] for one in ranks])
            if number > 2:  # of weights: FSDP2 would average over these ranks, so each has its share of the sum
                found *= RANKS
            torch.testing.assert_close(found, right[number], msg=lambda text, route=route: f"{route}: {text}")


@pytest.mark.parametrize("route", ROUTES)
def test_experts_of_one_rank(route: str) -> None:
    found = compute(module_of(experts.register()), slice(None), ROUTES[route] * RANKS)
    right = compute(module_of("eager"), slice(None), ROUTES[route] * RANKS)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
    unused = set(range(EXPERTS)) - {number for pair in ROUTES[route] for number in pair}
    for expert in unused:
        assert not found[3][expert].any()


def test_the_balancing_loss_is_transformers_own() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = tuple(torch.randn(10, EXPERTS, requires_grad=True) for _ in range(3))
    found, load = experts.balance_sum(logits, 2, 0.5, 1)
    right = load_balancing_loss_func(logits, EXPERTS, 2)
    torch.testing.assert_close(found, right * 0.5 * 10)
    assert load.sum(1).tolist() == [20, 20, 20]
