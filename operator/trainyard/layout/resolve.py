"""From a training configuration to a workload, and from a layout back to one that leaves nothing open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.api.train import ParallelConfig, TrainConfig
from trainyard.layout.hardware import Hardware
from trainyard.layout.problems import InvalidLayout
from trainyard.layout.shape import fields_of, shape_of
from trainyard.layout.types import Layout, Precision, Workload


def of_train(train: TrainConfig, ranks: int, per_node: int, hardware: Hardware,
             fields: Mapping[str, Any] | None = None) -> Workload | None:  # fmt: skip
    """The workload of a training configuration over `ranks` ranks, `per_node` a node. `fields`: the Hugging Face
    config, where the caller has read it; without it None if only files know it. Raises InvalidLayout."""
    known = fields if fields is not None else fields_of(train.model)
    if known is None:
        return None
    shape = shape_of(known)
    sequence = train.data.sequence_length
    if sequence > shape.positions:
        raise InvalidLayout("train.data.sequenceLength", f"should be at most the model's max_position_embeddings, "
                                                         f"{shape.positions}, found {sequence}")
    for name in ("attention_dropout", "router_jitter_noise") if train.two_batch_overlap else ():
        if known.get(name):
            raise InvalidLayout("train.twoBatchOverlap", f"should be false for a model that draws at random: its "
                                                         f"{name} is {known[name]}, not 0")
    micro = train.micro_batch_size if "micro_batch_size" in train.model_fields_set else None
    least = 2 if train.parallel.schedule == "ZBV" else 1  # ZBV wants twice as many micro-batches as ranks
    smallest = micro or (2 if train.two_batch_overlap else 1)
    batch = train.batch_size if train.batch_size is not None else smallest * ranks * least
    recompute = train.activation_checkpointing if "activation_checkpointing" in train.model_fields_set else None
    return Workload(shape, ranks, hardware.with_node(per_node), sequence, batch, precision(train, hardware),
                    train.parallel, micro, recompute, train.optimizer.offload and hardware.name != "CPU",
                    train.two_batch_overlap)  # fmt: skip


def precision(train: TrainConfig, hardware: Hardware) -> Precision:
    """`auto` made definite, as the trainer does."""
    if train.precision != "auto":
        return train.precision
    if hardware.name == "CPU":
        return "fp32"
    return "bf16" if "bf16" in hardware.peak else "fp16"


def settle(train: TrainConfig, work: Workload, layout: Layout) -> TrainConfig:
    """The configuration with everything set that was left open."""
    parallel = ParallelConfig(
        data=layout.data, shard=layout.shard, tensor=layout.tensor, pipeline=layout.pipeline, context=layout.context,
        ulysses=layout.ulysses, expert=layout.expert, zero=layout.zero,
        schedule=layout.schedule if layout.pipeline > 1 else None, stage_layers=list(layout.stage_layers) or None)
    return train.model_copy(update={
        "parallel": parallel, "batch_size": work.batch, "micro_batch_size": layout.micro,
        "activation_checkpointing": layout.recompute,
    })  # fmt: skip
