"""The composite ceiling: what a step would take if it were nothing but the model's matrix products, head and attention.

Each is timed alone at its shapes, into memory that is there already: forward, and the two of the backward pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from speed.cases import BATCH, MODEL, SEQUENCE

REPEATS = 7


def seconds(precision: str) -> dict[str, float]:
    """Of a step, by kind: the fastest of REPEATS of each operation, times how often it occurs."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    hidden, inner, layers = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["num_hidden_layers"]
    key = hidden // MODEL["num_attention_heads"] * MODEL["num_key_value_heads"]
    block = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden), (hidden, inner), (hidden, inner),
             (inner, hidden)]  # fmt: skip
    return {
        "matrices": layers * sum(linear(*shape, dtype) for shape in block),
        "attention": layers * attention(dtype),
        "head": linear(hidden, MODEL["vocab_size"], dtype),
    }


def best(work: Callable[[], object]) -> float:
    """The fastest of some repetitions, after one that does not count."""
    found = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def linear(inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Forward, gradient of the input and gradient of the weight of a Linear over a batch."""
    tokens = BATCH * SEQUENCE
    value, weight, result = (torch.randn(*shape).to(dtype) for shape in (
        (tokens, inputs), (outputs, inputs), (tokens, outputs)))
    of_value, of_weight = torch.empty_like(value), torch.empty_like(weight)
    return (best(lambda: torch.mm(value, weight.t(), out=result))
            + best(lambda: torch.mm(result, weight, out=of_value))
            + best(lambda: torch.mm(result.t(), value, out=of_weight)))  # fmt: skip


def attention(dtype: torch.dtype) -> float:
    """Causal attention of a block, forward and backward."""
    heads, keys = MODEL["num_attention_heads"], MODEL["num_key_value_heads"]
    width = MODEL["hidden_size"] // heads
    query, key, value = (torch.randn(BATCH, SEQUENCE, number, width, dtype=dtype).transpose(1, 2).requires_grad_()
                         for number in (heads, keys, keys))  # laid out as a model's are
    gradient = torch.randn(BATCH, heads, SEQUENCE, width, dtype=dtype)

    def both() -> None:
        result = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        torch.autograd.grad(result, (query, key, value), gradient)

    return best(both)
