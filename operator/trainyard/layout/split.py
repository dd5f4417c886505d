"""Which layers a pipeline stage holds, which stages a rank holds, and how much of a step is in flight on it."""

from __future__ import annotations

from functools import lru_cache

from trainyard.layout.shape import ModelShape
from trainyard.layout.types import Layout


@lru_cache(maxsize=4096)
def split(shape: ModelShape, sequence: int, stages: int) -> tuple[int, ...]:
    """Layers of every stage, as even in time as whole layers allow: the last one computes the head as well, the first
    looks up the embedding, which costs memory but no time. Larger stages come late: the first ranks of a pipeline
    hold the most activations. Every stage has a layer; `stages` must not be above the layers."""
    head = shape.head_flops / (shape.layer_flops + shape.attention_flops(sequence))
    if stages == 1:
        return (shape.layers,)
    most = shape.layers - (stages - 1)

    def slowest(last: int) -> tuple[float, int]:
        return max(-(-(shape.layers - last) // (stages - 1)), last + head), -last

    last = min(range(1, most + 1), key=slowest)
    even, more = divmod(shape.layers - last, stages - 1)
    return (*([even] * (stages - 1 - more)), *([even + 1] * more), last)


def stages_of(layout: Layout, rank: int) -> tuple[int, ...]:
    """The stages of a rank of the pipeline, first to last. Round and round; for ZBV there and back: the first rank has
    the first and the last stage."""
    if layout.schedule == "ZBV":
        return rank, 2 * layout.pipeline - 1 - rank
    return tuple(rank + turn * layout.pipeline for turn in range(layout.chunks))


def in_flight(layout: Layout, rank: int, micro_batches: int) -> int:
    """Micro-batches times stages whose activations a rank holds at its fullest."""
    ranks, chunks = layout.pipeline, layout.chunks
    if ranks == 1:
        return 1
    if layout.schedule == "ZBV":
        return min(2 * micro_batches, 2 * ranks)
    if chunks == 1:
        return min(micro_batches, ranks - rank)
    a_round = micro_batches // max(1, micro_batches // ranks)
    return min(micro_batches * chunks, (chunks - 1) * a_round + 2 * (ranks - 1 - rank) + 1)
