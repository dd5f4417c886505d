"""The ranks' groups. One object owns them and knows this rank's place."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from trainer.parallel.layout import DIMENSIONS, Layout


class Mesh:
    """The layout laid over the connected ranks: ranks are numbered with tensor innermost, then context, shard, data,
    and pipeline outermost. Within context, ulysses is inside ring.

    Every rank makes it at the same time: it creates the groups. Dimensions of 1 have none."""

    def __init__(self, layout: Layout, device: torch.device, rank: int, own_groups: str = "") -> None:
        """`own_groups`: backend of groups that are all the mesh's own, even of all ranks, so that they can be taken
        down with it."""
        if layout.world_size != dist.get_world_size():
            raise ValueError(f"a layout of {layout.world_size} ranks for a gang of {dist.get_world_size()}")
        self.layout = layout
        self.device = device
        self.coordinates: dict[str, int] = {}
        rest = rank
        for name in reversed(DIMENSIONS):
            rest, self.coordinates[name] = divmod(rest, getattr(layout, name))
        sizes = {"pipeline": layout.pipeline, "data": layout.data, "sharding": layout.sharding_ranks,
                 "tensor": layout.tensor}
        used = {name: size for name, size in sizes.items() if size > 1 or name == "sharding"}
        self._backend = own_groups
        self._mesh = self._device_mesh(used)
        self.ulysses_rank = self.coordinates["context"] % (layout.ulysses or 1)
        self.ring_rank = self.coordinates["context"] // (layout.ulysses or 1)
        self.ring_group, self.ulysses_group = self._context_groups()
        self._experts = self._expert_mesh() if layout.expert > 1 or (layout.experts and layout.tensor > 1) else None
        # of a mixture: ranks with other tokens at the same layers, and those that have every expert of them once
        self.stage_group = self._neighbours(layout.world_size // layout.pipeline) if layout.experts else None
        self.expert_group = self._neighbours(layout.expert_holders) if layout.experts and layout.tensor > 1 else \
            self.sharding_group

    def _expert_mesh(self) -> DeviceMesh:
        """Ranks as experts see them: neighbours share them out, FSDP2 shards what each holds over the others. Ranks of
        a tensor group have different tokens there, like those of a context group."""
        layout = self.layout
        sizes = {"pipeline": layout.pipeline, "data": layout.data,
                 "expert_sharding": layout.expert_holders // layout.expert, "expert": layout.expert}
        return self._device_mesh({name: size for name, size in sizes.items() if size > 1 or name == "expert_sharding"})

    def _neighbours(self, size: int) -> Any:
        """The group of this rank and its neighbours, `size` of them; None for all ranks."""
        count = self.layout.world_size
        if size == count:
            return None
        groups = [list(range(first, first + size)) for first in range(0, count, size)]
        return dist.new_subgroups_by_enumeration(groups)[0]

    def _device_mesh(self, sizes: dict[str, int]) -> DeviceMesh:
        backends: Any = dict.fromkeys(sizes, self._backend) if self._backend else None
        return init_device_mesh(self.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes),
                                backend_override=backends)

    def _context_groups(self) -> tuple[Any, Any]:
        """Groups of a ring and of Ulysses; None where there is but one rank."""
        layout = self.layout
        rings: list[list[int]] = []
        heads: list[list[int]] = []
        ulysses = layout.ulysses or 1
        block = layout.context * layout.tensor
        for start in range(0, layout.world_size, block):
            for tensor in range(layout.tensor):
                ranks = [start + place * layout.tensor + tensor for place in range(layout.context)]
                heads += [ranks[first: first + ulysses] for first in range(0, layout.context, ulysses)]
                rings += [ranks[first::ulysses] for first in range(ulysses)]
        ring = dist.new_subgroups_by_enumeration(rings)[0] if layout.ring > 1 else None
        return ring, dist.new_subgroups_by_enumeration(heads)[0] if ulysses > 1 else None

    @property
    def sharding(self) -> DeviceMesh:
        """For FSDP2: one dimension, or two with the replicas first."""
        if self.layout.data > 1:
            return self._mesh["data", "sharding"]
        return self._mesh["sharding"]

    @property
    def sharding_group(self) -> Any:
        """The process group of shard x context: together they have every parameter once."""
        return self._mesh.get_group("sharding")

    @property
    def expert(self) -> DeviceMesh | None:
        """Ranks that share out the experts of a mixture."""
        return self._experts["expert"] if self._experts is not None and self.layout.expert > 1 else None

    @property
    def expert_sharding(self) -> DeviceMesh | None:
        """For FSDP2 of a rank's experts, if other ranks share them than those of `sharding`: without those that have
        other experts, with those of the tensor group."""
        if self._experts is None:
            return None
        return self._experts["data", "expert_sharding"] if self.layout.data > 1 else self._experts["expert_sharding"]

    @property
    def tensor(self) -> DeviceMesh | None:
        """Ranks that share each matrix."""
        return self._mesh["tensor"] if self.layout.tensor > 1 else None

    @property
    def tensor_group(self) -> Any:
        """Their process group, or None."""
        return self._mesh.get_group("tensor") if self.layout.tensor > 1 else None

    @property
    def pipeline_group(self) -> Any:
        """One rank a pipeline rank, or None."""
        return self._mesh.get_group("pipeline") if self.layout.pipeline > 1 else None

    @property
    def batch_rank(self) -> int:
        """Which of the `batch_ranks` parts of a batch this rank takes; ranks that differ in tensor, context or pipeline
        only take the same."""
        return self.coordinates["data"] * self.layout.shard + self.coordinates["shard"]

    @property
    def counts_loss(self) -> bool:
        """Of the ranks that compute the same part of a loss, is this the one that reports it?"""
        return self.coordinates["tensor"] == 0

    def copies(self, parameter: torch.Tensor) -> int:
        """How many ranks hold the same part of this parameter, so that a sum over all ranks counts it once."""
        holders = self.layout.world_size // self.layout.pipeline
        if not isinstance(parameter, DTensor):
            return holders
        shape = parameter.device_mesh.shape
        for dimension, placement in enumerate(parameter.placements):
            if not placement.is_replicate():
                holders //= shape[dimension]
        return holders
