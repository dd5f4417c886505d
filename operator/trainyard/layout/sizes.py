"""Sizes of a gang that a layout can go on with when pods are lost."""

from __future__ import annotations

from trainyard.api.job import LayoutEstimate, TrainingJobSpec
from trainyard.layout.problems import InvalidLayout


def gang_sizes(spec: TrainingJobSpec, layout: LayoutEstimate | None, least: int | None = None) -> list[int]:
    """Nodes, ascending, from `least` (default: minNodes) to numNodes, which is always one of them. A program of the
    user's own decides itself what it can do; of the shipped trainer's layout only data and shard change, and without a
    layout that was chosen before the start nothing does."""
    first = least or spec.min_nodes or spec.num_nodes
    smaller = range(first, spec.num_nodes) if spec.train is None or layout is not None else ()
    return [size for size in smaller if layout is None or _holds(layout, size * spec.procs)] + [spec.num_nodes]


def check_min_nodes(spec: TrainingJobSpec, layout: LayoutEstimate | None) -> None:
    """Raises InvalidLayout if a gang of minNodes could not train."""
    least = spec.min_nodes or spec.num_nodes
    sizes = gang_sizes(spec, layout, 1)
    if least in sizes:
        return
    if layout is None:
        raise InvalidLayout("minNodes", "only the files of train.model.path know the model's shape, so that no layout "
                                        "of a smaller gang can be known before the start: leave minNodes out, or give "
                                        "the shape in train.model.config")
    legal = ", ".join(map(str, sizes[:10])) + (", ..." if len(sizes) > 10 else "")
    why = f"which tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} does not divide"
    if layout.expert and layout.expert > 1:
        why += f", or leaves shards that expert {layout.expert} does not divide"
    raise InvalidLayout("minNodes", f"{least} nodes have {least * spec.procs} ranks, {why}; legal: {legal}")


def _holds(layout: LayoutEstimate, ranks: int) -> bool:
    """Whether tensor, pipeline, context and experts stay as they are with so many ranks."""
    fixed = (layout.tensor or 1) * (layout.pipeline or 1) * (layout.context or 1)
    replicas, shard = ranks // fixed, layout.shard or 1
    kept = shard if replicas % shard == 0 else replicas
    holders = kept * (layout.context or 1) * (layout.tensor or 1)
    return ranks % fixed == 0 and holders % (layout.expert or 1) == 0
