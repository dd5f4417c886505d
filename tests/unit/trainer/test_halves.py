"""Two halves of a micro-batch that compute in turns."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trainer import waits
from trainer.parallel import halves, recompute

SHAPE: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}


@pytest.fixture
def wait() -> Callable[[str], None]:
    """Something that is waited for as collectives are; what was begun is in `wait.begun`."""
    begun: list[str] = []
    waited = waits._watched(lambda: None)

    def collective(name: str) -> None:
        begun.append(name)
        waited()

    collective.begun = begun  # type: ignore[attr-defined]
    return collective


@pytest.mark.parametrize(("counts", "expected"), [
    ((3, 3), "a0 b0 a1 b1 a2 b2"), ((0, 2), "b0 b1"), ((2, 0), "a0 a1"), ((1, 3), "a0 b0 b1 b2"),
    ((3, 1), "a0 b0 a1 a2")])
def test_the_order_of_collectives_follows_from_their_numbers_alone(wait: Any, counts: tuple[int, int],
                                                                   expected: str) -> None:
    computing: list[str] = []

    def half(name: str, count: int) -> str:
        for number in range(count):
            computing.append(name)
            time.sleep(random.random() * 2e-3)
            assert computing == [name], "the other half must not run meanwhile"
            computing.clear()
            wait(f"{name}{number}")
        return name

    for _ in range(5):
        wait.begun.clear()
        assert halves.in_turns(lambda: half("a", counts[0]), lambda: half("b", counts[1])) == ("a", "b")
        assert " ".join(wait.begun) == expected


@pytest.mark.parametrize(("failing", "begun"), [("a", "a0 b0 a1 b1"), ("b", "a0 b0 a1 b1 a2")])
def test_a_half_that_fails_ends_the_other(wait: Any, failing: str, begun: str) -> None:
    """Alone it would wait for collectives that no other rank comes to."""
    def half(name: str) -> None:
        for number in range(9):
            if name == failing and number == 2:
                raise MemoryError(name)
            wait(f"{name}{number}")

    with pytest.raises(MemoryError, match=failing):
        halves.in_turns(lambda: half("a"), lambda: half("b"))
    assert " ".join(wait.begun) == begun
    assert halves.in_turns(lambda: 1, lambda: 2) == (1, 2), "the next ones are not concerned"


def test_the_other_thread_is_like_the_first(wait: Any) -> None:
    seconds: list[float] = []
    waits.this_thread.waited = seconds.append
    try:
        with torch.no_grad():
            found = halves.in_turns(lambda: None, lambda: (torch.is_grad_enabled(), wait("b"), threading.get_ident()))
    finally:
        waits.this_thread.waited = None
    assert found[1][0] is False
    assert found[1][2] != threading.get_ident()
    assert len(seconds) == 1, "its waits are waits of this rank"


class Exchange(torch.autograd.Function):  # type: ignore[misc]
    """Waits as a collective does, forward and backward."""

    @staticmethod
    def forward(saved: Any, tensor: torch.Tensor, wait: Any) -> torch.Tensor:
        saved.wait = wait
        wait("forward")
        return tensor.clone()

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        saved.wait("backward")
        return gradients[0], None


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_gradients_are_those_of_the_whole(wait: Any, family: str, checkpointing: str) -> None:
    """Outputs, routers' logits and every gradient, with waits in the middle of every block."""
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE)) if family == "llama" else MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=4, experts_implementation="eager"))
    model.train()
    recompute.apply(model, checkpointing)
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda _, given: (Exchange.apply(given[0], wait), *given[1:]))
    tokens = torch.randint(0, 64, (4, 8))

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        found = model.model(input_ids=tokens, position_ids=torch.arange(8)[None], output_router_logits=True)
        routers = list(getattr(found, "router_logits", None) or ())
        assert len(routers) == (2 if family == "mixtral" else 0)
        loss = model.lm_head(found.last_hidden_state).logsumexp(-1).sum() + sum(one.square().sum() for one in routers)
        loss.backward()
        return [loss.detach(), *(one.detach() for one in routers), *(one.grad for one in model.parameters())]

    right = run()
    waited = len(wait.begun)
    halves.apply(model)
    wait.begun.clear()
    found = run()
    assert len(wait.begun) == 2 * waited
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert model.model(input_ids=tokens, position_ids=torch.arange(8)[None]).last_hidden_state.shape == (4, 8, 32)
