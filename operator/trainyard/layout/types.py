"""What the planner reads and answers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from trainyard.api.train import ParallelConfig
from trainyard.layout.hardware import Hardware
from trainyard.layout.shape import ModelShape

Precision = Literal["fp32", "bf16", "fp16"]
Recompute = Literal["none", "selective", "full"]
Schedule = Literal["1F1B", "Interleaved1F1B", "ZBV"]
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be laid out over what. `None` in the last fields means: to be chosen."""

    shape: ModelShape
    ranks: int
    hardware: Hardware  # its node: ranks a node
    sequence: int
    batch: int  # samples an optimizer step
    precision: Precision
    asked: ParallelConfig = field(default_factory=ParallelConfig)
    micro: int | None = None
    recompute: Recompute | None = None
    offload: bool = False  # optimizer state in the host's memory
    overlap: bool = False  # train.twoBatchOverlap
    reduced: int = 4  # bytes of a gradient on its way between ranks: the trainer's are fp32


@dataclass(frozen=True, slots=True)
class Layout:
    """A complete layout. Ranks are numbered tensor innermost, then context, shard, data, pipeline."""

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    ulysses: int = 1
    expert: int = 1
    zero: Literal[2, 3] = 3
    schedule: Schedule = "1F1B"
    stage_layers: tuple[int, ...] = ()  # () without a pipeline
    micro: int = 1
    recompute: Recompute = "none"

    @property
    def ranks(self) -> int:
        """How many ranks it is for."""
        return self.data * self.shard * self.tensor * self.pipeline * self.context

    @property
    def chunks(self) -> int:
        """Pipeline stages a rank."""
        return max(1, len(self.stage_layers) // self.pipeline)

    @property
    def sharding(self) -> int:
        """Ranks over which a parameter is sharded: those of a context hold the same parameters and share, too."""
        return self.shard * self.context

    @property
    def expert_holders(self) -> int:
        """Ranks that have all experts of their layers once, together: tensor ranks have other tokens for them."""
        return self.sharding * self.tensor

    @property
    def shares_parameters(self) -> bool:
        """Are there other ranks with the same parameters, or shards of them? Without there is no FSDP2. Tensor ranks
        have the same norms."""
        return self.sharding * self.data * self.tensor > 1

    def micro_batches(self, batch: int) -> int:
        """Micro-batches a step and rank."""
        return batch // (self.micro * self.data * self.shard)

    def __str__(self) -> str:
        parts = [f"{name} {size}" for name in ("data", "shard", "tensor", "pipeline", "context", "expert")
                 if (size := getattr(self, name)) > 1]  # fmt: skip
        if self.context > 1 and self.ulysses > 1:
            parts.append(f"ulysses {self.ulysses}")
        if self.pipeline > 1:
            parts.append(f"{self.schedule}{f' x{self.chunks}' if self.schedule == 'Interleaved1F1B' else ''}")
        if self.sharding > 1:
            parts.append(f"ZeRO-{self.zero}")
        parts.append(f"micro-batch {self.micro}")
        if self.recompute != "none":
            parts.append(f"{self.recompute} recomputation")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest device, by kind."""

    parameters: float = 0.0  # this rank's shards, fp32
    gathered: float = 0.0  # parameters in the type of computation, as far as they are there at the peak
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0  # of communication: what a reduction copies together
    checkpoint: float = 0.0  # the copy that is being saved, where the host's memory is the device's
    overhead: float = 0.0  # not tensors: context, workspace, communicators, fragmentation

    @property
    def tensors(self) -> float:
        """All but the overhead."""
        return self.total - self.overhead

    @property
    def total(self) -> float:
        """The sum."""
        return (self.parameters + self.gathered + self.gradients + self.optimizer + self.activations + self.logits
                + self.buffers + self.checkpoint + self.overhead)

    def items(self) -> list[tuple[str, float]]:
        """(kind, bytes), in the order above."""
        return [(each.name, getattr(self, each.name)) for each in fields(self)]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a step goes, on the slowest rank."""

    compute: float = 0.0
    recompute: float = 0.0
    shard: float = 0.0  # exposed communication of sharding and replicas
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    pipeline: float = 0.0  # messages between stages
    bubble: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return (self.compute + self.recompute + self.shard + self.tensor + self.context + self.expert + self.pipeline
                + self.bubble + self.optimizer)

    @property
    def communication(self) -> float:
        """Exposed communication of all kinds."""
        return self.shard + self.tensor + self.context + self.expert + self.pipeline

    def items(self) -> list[tuple[str, float]]:
        """(kind, seconds), in the order above."""
        return [(each.name, getattr(self, each.name)) for each in fields(self)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A layout, what it takes and how long a step lasts; that is not computed for one that does not fit."""

    layout: Layout
    memory: Memory
    seconds: Seconds
    fits: bool
