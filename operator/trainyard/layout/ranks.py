"""Who is in which group: ranks are numbered with tensor innermost, then context, shard, data, pipeline, so that what
talks most is nearest. Node k has the ranks from k x ranks a node on, ring by ring."""

from __future__ import annotations

from trainyard.layout.types import Layout

ORDER = ("tensor", "context", "shard", "data", "pipeline")  # innermost first


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Place of a rank in every dimension."""
    found = {}
    for name in ORDER:
        rank, found[name] = divmod(rank, getattr(layout, name))
    return found


def stride(layout: Layout, dimension: str) -> int:
    """How far apart in rank the neighbours of a group are."""
    apart = 1
    for name in ORDER[: ORDER.index(dimension)]:
        apart *= getattr(layout, name)
    return apart


def groups(layout: Layout, dimension: str) -> list[tuple[int, ...]]:
    """The groups of a dimension: ranks that differ in nothing else."""
    apart, size = stride(layout, dimension), getattr(layout, dimension)
    return [tuple(range(first, first + apart * size, apart))
            for start in range(0, layout.ranks, apart * size) for first in range(start, start + apart)]


def nodes_of(group: tuple[int, ...], per_node: int) -> set[int]:
    """The nodes (pods, by index) that a group reaches."""
    return {rank // per_node for rank in group}
