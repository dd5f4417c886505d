"""The numbers of a layout: completed from `train.parallel`, checked against ranks and model. No torch here, so that
mistakes are told before it is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import lcm, prod
from typing import Any, Literal

from trainyard.api.train import ParallelConfig

from trainer.errors import ConfigError

Schedule = Literal["1F1B", "Interleaved1F1B", "ZBV"]

DIMENSIONS = ("pipeline", "data", "shard", "context", "tensor")  # outermost first: how ranks are numbered
STAGES_PER_RANK = {"1F1B": 1, "Interleaved1F1B": 2, "ZBV": 2}  # unless stageLayers says otherwise


@dataclass(frozen=True)
class Layout:
    """How many ranks share out what. Their product is the number of ranks; `ulysses` is a part of `context`,
    `expert` one of shard x context x tensor: to experts, tensor ranks are ranks with other tokens."""

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    ulysses: int | None = None  # None until the model is known
    expert: int = 1
    zero: Literal[2, 3] = 3
    schedule: Schedule = "1F1B"
    stage_layers: tuple[int, ...] = ()  # empty without a pipeline, or until the model is known
    overlap: bool = False  # of the two halves of a micro-batch: one computes while the other communicates
    experts: int = 0  # of the model; 0: it is no mixture, or not known yet

    @property
    def world_size(self) -> int:
        """All ranks."""
        return prod(getattr(self, name) for name in DIMENSIONS)

    @property
    def batch_ranks(self) -> int:
        """Ranks, or groups of them, that take different samples."""
        return self.data * self.shard

    @property
    def sharding_ranks(self) -> int:
        """Ranks over which FSDP2 shards a parameter: those of a context group hold the same ones, so they share too."""
        return self.shard * self.context

    @property
    def expert_holders(self) -> int:
        """Ranks that have all experts of their layers once, together."""
        return self.sharding_ranks * self.tensor

    @property
    def shares_parameters(self) -> bool:
        """Are there other ranks with the same parameters, or shards of them? Tensor ranks have the same norms, whose
        gradients FSDP2 adds up."""
        return self.sharding_ranks * self.data * self.tensor > 1

    @property
    def fuses_head(self) -> bool:
        """Does a rank have the whole head, and compute it and the loss as one?"""
        return self.tensor == 1 and self.pipeline == 1

    @property
    def ring(self) -> int:
        """Ranks that pass keys and values round."""
        return self.context // (self.ulysses or 1)

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.stage_layers) or self.pipeline

    def fields(self) -> dict[str, int]:
        """For the progress file and the log."""
        return {name: getattr(self, name) for name in ("data", "shard", "tensor", "pipeline", "context", "expert")}

    def __str__(self) -> str:
        sizes = {name: size for name, size in self.fields().items() if size > 1}
        parts = [f"{name} {size}" for name, size in sizes.items()] or ["one rank"]
        if self.context > 1 and self.ulysses is not None:
            parts.append(f"ulysses {self.ulysses}")
        if self.pipeline > 1:
            parts.append(f"{self.schedule}, layers {'+'.join(map(str, self.stage_layers))}")
        if self.overlap:
            parts.append("two-batch overlap")
        return ", ".join(parts)


def complete(given: ParallelConfig, world_size: int) -> Layout:
    """What was asked for; ranks that nothing was said about become shards. Raises ConfigError if it does not fit the
    number of ranks."""
    fixed: dict[str, Any] = {name: getattr(given, name) or 1 for name in ("tensor", "pipeline", "context")}
    inner = prod(fixed.values())
    if world_size % inner:
        name = next(name for name in fixed if world_size % fixed[name] or fixed[name] > 1)
        others = inner // fixed[name]
        legal = divisors(world_size // others) if world_size % others == 0 else divisors(world_size)
        product = " x ".join(f"{name} {size}" for name, size in fixed.items() if size > 1)
        raise ConfigError(f"train.parallel: {product} should divide the number of ranks, {world_size}; "
                          f"{name}: {nearest(fixed[name], legal)}")
    data, shard = _data_and_shard(given, world_size // inner, world_size)
    if given.ulysses is not None and fixed["context"] % given.ulysses:
        raise ConfigError(f"train.parallel.ulysses should divide context, {fixed['context']}, found {given.ulysses}; "
                          f"{nearest(given.ulysses, divisors(fixed['context']))}")
    expert, holders = given.expert or 1, shard * fixed["context"] * fixed["tensor"]
    if holders % expert:
        raise ConfigError(f"train.parallel.expert should divide shard x context x tensor, {holders}, found {expert}; "
                          f"{nearest(expert, divisors(holders))}")
    schedule = _schedule(given, fixed["pipeline"])
    zero = given.zero or (2 if fixed["pipeline"] > 1 else 3)  # a pipeline would gather for every micro-batch
    if schedule == "ZBV" and zero == 3:  # torch wants gradients of what FSDP2 has put shards for
        raise ConfigError("train.parallel.zero should be 2 with schedule ZBV, found 3: weight gradients would be lost")
    return Layout(data=data, shard=shard, **fixed, ulysses=given.ulysses if fixed["context"] > 1 else 1,
                  expert=expert, zero=zero, schedule=schedule, stage_layers=tuple(given.stage_layers or ()))


def _data_and_shard(given: ParallelConfig, ranks: int, world_size: int) -> tuple[int, int]:
    of = f"{ranks} ranks"
    if ranks != world_size:
        of += f" (of {world_size}, beside tensor, pipeline and context)"
    data, shard = given.data, given.shard
    if data is None and shard is None:
        return 1, ranks
    if data is None or shard is None:
        name, size = ("shard", shard) if data is None else ("data", data)
        assert size is not None
        if ranks % size:
            raise ConfigError(f"train.parallel.{name} is {size}, but {of} are not a multiple of it; "
                              f"{nearest(size, divisors(ranks))}")
        return (ranks // size, size) if name == "shard" else (size, ranks // size)
    if data * shard != ranks:
        raise ConfigError(f"train.parallel.data x shard should be the number of ranks, {of}, found {data} x {shard} = "
                          f"{data * shard}")
    return data, shard


def _schedule(given: ParallelConfig, pipeline: int) -> Schedule:
    layers = given.stage_layers
    if pipeline == 1:
        for name, found in (("schedule", given.schedule), ("stageLayers", layers)):
            if found is not None:
                raise ConfigError(f"train.parallel.{name} is for a pipeline, but train.parallel.pipeline is 1; leave "
                                  f"it out")
        return "1F1B"
    schedule: Schedule = given.schedule or ("1F1B" if layers is None or len(layers) == pipeline else "Interleaved1F1B")
    if layers is None:
        return schedule
    if schedule == "Interleaved1F1B":
        if len(layers) % pipeline or len(layers) == pipeline:
            raise ConfigError(f"train.parallel.stageLayers should have {2 * pipeline}, {3 * pipeline}, ... stages for "
                              f"Interleaved1F1B on {pipeline} ranks, found {len(layers)}")
    elif len(layers) != STAGES_PER_RANK[schedule] * pipeline:
        raise ConfigError(f"train.parallel.stageLayers should have {STAGES_PER_RANK[schedule] * pipeline} stages for "
                          f"{schedule} on {pipeline} ranks, found {len(layers)}")
    return schedule


def fit(layout: Layout, model: Mapping[str, Any], sequence_length: int) -> Layout:
    """The layout completed for a model (fields of its Hugging Face config). Raises ConfigError if it does not divide
    the model's heads, widths, layers or the sequence."""
    heads = model["num_attention_heads"]
    kv_heads = model.get("num_key_value_heads") or heads
    _divides(layout.tensor, "tensor", kv_heads, "the model's key-value heads")
    experts = model.get("num_local_experts") or 0
    for name in ("vocab_size",) if experts else ("intermediate_size", "vocab_size"):  # no expert is cut
        _divides(layout.tensor, "tensor", model[name], f"the model's {name}")
    ulysses = layout.ulysses
    if ulysses is None:  # exchanging heads is cheaper than a ring as long as no key-value head must be copied
        ulysses = max(size for size in divisors(layout.context) if kv_heads // layout.tensor % size == 0)
    if heads // layout.tensor % ulysses:
        each = heads // layout.tensor
        legal = [size for size in divisors(layout.context) if each % size == 0]
        raise ConfigError(f"train.parallel.ulysses should divide the heads of a rank, {each}, found {ulysses}; "
                          f"{nearest(ulysses, legal)}")
    _check_sequence(replace(layout, ulysses=ulysses), sequence_length)
    _check_experts(layout, experts)
    for name in ("attention_dropout", "router_jitter_noise") if layout.overlap else ():
        if model.get(name):  # what is computed again in the backward pass would draw other numbers
            raise ConfigError(f"train.twoBatchOverlap should be false for a model that draws at random: its {name} is "
                              f"{model[name]}, not 0")
    stages = _stage_layers(layout, model, sequence_length) if layout.pipeline > 1 else ()
    if layout.pipeline > 1 and model.get("tie_word_embeddings"):
        raise ConfigError("train.parallel.pipeline should be 1 for a model with tie_word_embeddings: its first and its "
                          "last stage would hold the same matrix")
    return replace(layout, ulysses=ulysses, stage_layers=stages, experts=experts)


def _check_experts(layout: Layout, experts: int) -> None:
    if layout.expert > 1 and not experts:
        raise ConfigError(f"train.parallel.expert is {layout.expert}, but the model has no experts; leave it out")
    if experts:
        _divides(layout.expert, "expert", experts, "the model's experts")


def _divides(size: int, name: str, number: int, what: str) -> None:
    if number % size:
        raise ConfigError(f"train.parallel.{name} should divide {what}, {number}, found {size}; "
                          f"{nearest(size, divisors(number))}")


def _check_sequence(layout: Layout, sequence_length: int) -> None:
    """Ring ranks hold two chunks each, one from either end; sequence parallel cuts a rank's part again."""
    chunks = 2 * layout.ring if layout.ring > 1 else 1
    unit = lcm(chunks, layout.context * layout.tensor)
    if sequence_length % unit:
        lower = max(unit, sequence_length // unit * unit)
        raise ConfigError(f"train.data.sequenceLength should be a multiple of {unit} for context {layout.context} "
                          f"(ulysses {layout.ulysses}) and tensor {layout.tensor}, found {sequence_length}; the "
                          f"nearest are {lower} and {(sequence_length // unit + 1) * unit}")


def _stage_layers(layout: Layout, model: Mapping[str, Any], sequence_length: int) -> tuple[int, ...]:
    layers = model["num_hidden_layers"]
    count = len(layout.stage_layers) or layout.pipeline * STAGES_PER_RANK[layout.schedule]
    if layers < count:
        raise ConfigError(f"train.parallel.pipeline: {layout.pipeline} ranks x {count // layout.pipeline} stages need "
                          f"at least {count} layers, found {layers}: a stage would be empty; the most pipeline can be "
                          f"is {layers // (count // layout.pipeline)} with {layout.schedule}")
    if not layout.stage_layers:
        return even_stages(count, model, sequence_length)
    if 0 in layout.stage_layers:
        raise ConfigError(f"train.parallel.stageLayers: stage {layout.stage_layers.index(0)} is empty; every stage "
                          f"needs a layer")
    if sum(layout.stage_layers) != layers:
        raise ConfigError(f"train.parallel.stageLayers should add up to the model's {layers} layers, found "
                          f"{sum(layout.stage_layers)}")
    return layout.stage_layers


def even_stages(stages: int, model: Mapping[str, Any], sequence_length: int) -> tuple[int, ...]:
    """Layers a stage, such that the slowest stage is as fast as can be: the last one has the head to compute, too.
    What does not go evenly goes to late stages: early ones hold the most activations.

    In multiplications a token: a layer has its matrices and attention over half the sequence on average, the head
    hidden x vocabulary, the embedding none."""
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    width = model.get("head_dim") or hidden // heads
    kv_heads = model.get("num_key_value_heads") or heads
    used = model.get("num_experts_per_tok") or 1 if model.get("num_local_experts") else 1
    layer = (2 * hidden * width * (heads + kv_heads) + 3 * hidden * model["intermediate_size"] * used
             + heads * width * sequence_length)
    cost = [float(layer)] * stages
    cost[-1] += hidden * model["vocab_size"]
    count = [1] * stages
    for _ in range(model["num_hidden_layers"] - stages):
        cheapest = max(range(stages), key=lambda stage: (-cost[stage], stage))
        cost[cheapest] += layer
        count[cheapest] += 1
    return tuple(count)


def overlapping(layout: Layout, micro_batch_size: int) -> Layout:
    """The same layout with the halves of a micro-batch overlapping. Raises ConfigError if there are no halves, or if
    their blocks do not communicate."""
    if micro_batch_size % 2:
        legal = (size for size in (micro_batch_size - 1, micro_batch_size + 1) if size)
        raise ConfigError(f"train.microBatchSize should be even with twoBatchOverlap, found {micro_batch_size}; "
                          f"{nearest(micro_batch_size, legal)}")
    if layout.tensor * layout.context * layout.expert == 1:
        raise ConfigError(f"train.twoBatchOverlap needs tensor, context or expert parallelism, whose communication it "
                          f"hides: in this layout ({layout}) blocks have none; leave it out")
    if layout.schedule == "ZBV":
        raise ConfigError("train.parallel.schedule should be 1F1B or Interleaved1F1B with twoBatchOverlap, found ZBV: "
                          "it goes backward through a block twice, for its input and for its weights")
    return replace(layout, overlap=True)


def whole_rounds(layout: Layout, count: int) -> bool:
    """Whether `count` micro-batches are rounds, all alike, of as many as the pipeline has ranks or a few more: torch
    wants that for Interleaved1F1B."""
    return count % max(1, count // layout.pipeline) == 0


def check_micro_batches(layout: Layout, count: int) -> None:
    """Raise ConfigError if the schedule cannot run with `count` micro-batches a step."""
    if layout.pipeline == 1:
        return
    least = {"1F1B": layout.pipeline, "Interleaved1F1B": layout.pipeline, "ZBV": 2 * layout.pipeline - 1}
    if count < (needed := least[layout.schedule]):
        raise ConfigError(f"train.batchSize should give a pipeline of {layout.pipeline} ranks with {layout.schedule} "
                          f"at least {needed} micro-batches, found {count}; use {needed} x microBatchSize x "
                          f"{layout.batch_ranks} (data x shard) or more")
    if layout.schedule == "Interleaved1F1B" and not whole_rounds(layout, count):
        raise ConfigError(f"train.batchSize should give Interleaved1F1B a multiple of {layout.pipeline} micro-batches "
                          f"(pipeline), found {count}")


def divisors(number: int) -> list[int]:
    """1 to `number`, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def nearest(found: int, legal: Iterable[int]) -> str:
    """The legal values on either side of what was found, for an error."""
    values = sorted(legal)
    near = [value for value in values if value < found][-1:] + [value for value in values if value > found][:1]
    return f"legal values nearest to it: {' and '.join(map(str, near or values[:1]))}"
