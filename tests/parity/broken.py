"""Layouts broken on purpose: mistakes that a change could make, each of which the comparison must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch


def no_reduce_of_replicas() -> None:
    """HSDP's replicas keep their own gradients: the all-reduce between them does nothing."""
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    class Quiet:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_, **__: None) if name == "all_reduce" else getattr(dist, name)

    _fsdp_collectives.dist = Quiet()


def wrong_scale() -> None:
    """The loss is divided by the tokens of a rank instead of those of the batch."""
    from trainer.loop import Loop

    right = Loop.loss_factor
    Loop.loss_factor = (  # type: ignore[method-assign]
        lambda self, targets: right(self, targets) * self.model.layout.batch_ranks)


def no_reduce_in_attention() -> None:
    """Each tensor rank takes its own part of attention's output for the sum."""
    from torch.distributed.tensor.parallel import RowwiseParallel
    from trainer.parallel import tensor

    class Unreduced(RowwiseParallel):  # type: ignore[misc]
        @staticmethod
        def _prepare_output_fn(output_layouts: Any, use_local_output: Any, mod: Any, outputs: Any, mesh: Any) -> Any:
            size = mesh.size()
            return outputs.to_local().chunk(size, 1)[mesh.get_local_rank()].contiguous()

    right = tensor.block_plan
    tensor.block_plan = lambda: {**right(), "self_attn.o_proj": Unreduced(output_layouts=tensor.SEQUENCE)}


def norms_counted_by_every_rank() -> None:
    """The gradient norm counts a norm's weights once a rank that has them."""
    from trainer.parallel.mesh import Mesh

    Mesh.copies = lambda self, parameter: 1  # type: ignore[method-assign]


def loss_of_a_part_of_the_vocabulary() -> None:
    """The sum of exponentials is not added up over the ranks of the vocabulary."""
    from trainer.parallel import model

    module: Any = model
    right = module.cross_entropy_sum
    module.cross_entropy_sum = lambda logits, targets, group=None: right(
        logits, targets % logits.shape[-1] if group is not None else targets)


def same_samples_everywhere() -> None:
    """Every rank takes the first part of the batch."""
    from trainer.parallel.mesh import Mesh

    Mesh.batch_rank = 0  # type: ignore[assignment, method-assign]


def dead_embedding() -> None:
    """The embedding learns nothing (training.md knows a combination of torch's in which this happened)."""
    right = torch.nn.functional.embedding
    torch.nn.functional.embedding = lambda ids, weight, *rest: right(ids, weight.detach(), *rest)


def positions_from_zero() -> None:
    """Every context rank numbers its part of the sequence from 0, as transformers does when it is told nothing."""
    from trainer.parallel.model import ParallelModel

    ParallelModel.arguments = lambda self: {"context": self.context}  # type: ignore[method-assign]


def ring_without_causal_order() -> None:
    """Ranks see the chunks that come after theirs, too."""
    from trainer.parallel.context import Context

    right = Context.visible
    Context.visible = lambda self, source, length: (  # type: ignore[method-assign]
        right(self, source, length) if source == self._ring_rank else (slice(0, length), slice(0, length), False))


def gradients_divided_by_micro_batches() -> None:
    """The pipeline takes the mean of the micro-batches of a loss that is a mean already."""
    from trainer.parallel import pipeline

    for name, kind in pipeline.SCHEDULES.items():
        pipeline.SCHEDULES[name] = type(name, (kind,), {
            "__init__": lambda self, *given, _kind=kind, **named: _kind.__init__(
                self, *given, **{**named, "scale_grads": True})})


def experts_balanced_by_each_rank() -> None:
    """The balancing loss is the mean of the ranks' own."""
    from trainer.parallel import model

    module: Any = model
    right = module.balance_sum
    module.balance_sum = lambda logits, chosen, weight, ranks: right(logits, chosen, weight, 1)


def experts_not_averaged() -> None:
    """The gradients of experts are a sum over their ranks, those of everything else a mean."""
    from trainer.parallel import experts

    right = experts._local
    experts._local = lambda weight, divisor: right(weight, 1)


def experts_limited_by_each_rank() -> None:
    """Tokens compete for an expert with those of their own rank only."""
    import torch.distributed as dist
    from trainer.parallel import capacity

    class Alone:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: 1) if name == "get_world_size" else getattr(dist, name)

    module: Any = capacity
    module.dist = Alone()


def halves_in_an_order_of_each_rank() -> None:
    """Odd ranks begin with the other half of a micro-batch, so that collectives of different halves meet."""
    import torch.distributed as dist
    from trainer.parallel import halves

    right = halves.in_turns
    halves.in_turns = lambda first, second: (
        right(second, first)[::-1] if dist.get_rank() % 2 else right(first, second))


def experts_of_other_stages_not_balanced() -> None:
    """The gradients of the balancing loss end at the last stage of a pipeline."""
    from trainer.parallel import pipeline

    module: Any = pipeline
    right = module.make_callable

    def make_callable(model: Any, *given: Any) -> None:
        right(model, *given)
        forward = model.forward
        model.forward = lambda value, before=None, documents=None: forward(
            value, None if before is None else before.detach(), documents)

    module.make_callable = make_callable


def experts_router_learns_of_its_rank() -> None:
    """A router's gradient is not added up over the tensor group."""
    from trainer.parallel import tensor

    module: Any = tensor
    right = module._OwnTokens.__call__

    def call(self: Any, hidden: torch.Tensor) -> Any:
        with mock.patch.object(module, "Partial", module.Replicate):
            return right(self, hidden)

    module._OwnTokens.__call__ = call


def experts_averaged_over_tensor_ranks() -> None:
    """The gradients of experts are a mean over tensor ranks, as if these had the same tokens."""
    from trainer.parallel import experts, pipeline

    right = experts.apply

    def apply(model: Any, mesh: Any) -> None:
        right(model, mesh)
        for block in pipeline.present(model):
            block.mlp.experts.trainyard_tensor = 1

    experts.apply = apply


DAMAGES: dict[str, Callable[[], None]] = {
    "none": lambda: None, **{one.__name__: one for one in (
        no_reduce_of_replicas, wrong_scale, no_reduce_in_attention, norms_counted_by_every_rank,
        loss_of_a_part_of_the_vocabulary, same_samples_everywhere, dead_embedding, positions_from_zero,
        ring_without_causal_order, gradients_divided_by_micro_batches, experts_balanced_by_each_rank,
        experts_not_averaged, experts_limited_by_each_rank, halves_in_an_order_of_each_rank,
        experts_of_other_stages_not_balanced, experts_router_learns_of_its_rank, experts_averaged_over_tensor_ranks)}}


def apply(name: str) -> None:
    """Break it."""
    DAMAGES[name]()
