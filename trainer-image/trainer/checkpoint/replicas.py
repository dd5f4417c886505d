"""Ranks that hold the same state, bit for bit: those that differ in nothing but their place in `parallel.data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.parallel.layout import Layout


@dataclass(frozen=True)
class Replicas:
    """`count` of each state, `stride` ranks apart (trainer.parallel.mesh says how ranks are numbered)."""

    count: int = 1
    stride: int = 1

    @classmethod
    def of_layout(cls, layout: Layout) -> Replicas:
        """Inside data are shard, context and tensor."""
        return cls(layout.data, layout.sharding_ranks * layout.tensor)

    def first(self, rank: int) -> int:
        """The first rank that has this one's state."""
        return rank - rank // self.stride % self.count * self.stride

    def all(self, rank: int) -> range:
        """All that have it."""
        first = self.first(rank)
        return range(first, first + self.count * self.stride, self.stride)

    def hosts(self, rank: int, hosts: Sequence[str]) -> set[str]:
        """Other nodes than its own that have it; `hosts` has the node of each rank."""
        return {hosts[other] for other in self.all(rank)} - {hosts[rank]}
