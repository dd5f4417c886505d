"""parallelize(): everything that is done to a model before it has weights, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.parallel import compiled, experts, halves, loss, pipeline, recompute, shard, tensor
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import ParallelModel
from trainer.precision import Precision


def parallelize(build: Callable[[], Any], mesh: Mesh, precision: Precision, checkpointing: str,
                compiles: bool = False, capacity: float | None = None) -> ParallelModel:
    """A transformers model spread over the ranks. `build` makes it on the meta device (once for every stage that this
    rank has); nothing has storage yet. `capacity`: of a mixture's experts, as a multiple of their even share.

    The order matters: a stage is cut out first; its matrices and experts are cut before FSDP2 shards what is left;
    checkpointing wraps what tensor parallelism has changed, and FSDP2 comes last, so that it gathers outside of
    everything; only the halves of a micro-batch that overlap divide what is inside of FSDP2. Context parallelism
    changes no module: attention does it (attention.py)."""
    layout = mesh.layout
    whole = build()
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    numbers = pipeline.stages_of(mesh.coordinates["pipeline"], layout) if layout.pipeline > 1 else [0]
    stages = [whole, *(build() for _ in numbers[1:])]
    parallel = ParallelModel(stages, numbers, mesh, shapes, precision, capacity)
    for model, number in zip(stages, numbers, strict=True):
        if layout.pipeline > 1:
            pipeline.cut(model, number, layout)
        if layout.fuses_head:
            loss.make_callable(model)
        else:
            pipeline.make_callable(model, number, layout, parallel.arguments, parallel.count_routed)
        if mesh.tensor is not None:
            tensor.apply(model, mesh.tensor)
        if layout.experts:
            experts.apply(model, mesh)
        if capacity is not None:
            experts.limit(model, capacity, mesh.stage_group)
        recompute.apply(model, checkpointing)
        if compiles:
            compiled.apply(model)
        shard.apply(model, mesh, precision)
        if layout.overlap:
            halves.apply(model)
    return parallel
