"""How evenly the experts of a mixture are busy: the tokens that each got, measured in training itself.

The load-balancing loss needs the counts of all ranks in every micro-batch (experts.balance_sum): they are there anyway.
Here they are added up on the device, and looked at only when somebody wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.parallel.model import ParallelModel

Counts = Sequence[Sequence[float]]  # tokens by layer and expert
SHOWN = 8  # layers that a profile lists


@dataclass(frozen=True)
class LayerLoad:
    """One layer of a mixture."""

    layer: int
    imbalance: float  # tokens of the busiest rank of those that share out its experts, over their mean
    expert: int  # the one with the most tokens
    share: float  # of the layer's tokens that it got
    idle: int  # experts that got nothing
    dropped: float = 0.0  # share of what the router sent that was beyond the experts' capacity

    @property
    def badness(self) -> tuple[float, float]:
        """Sorts the worst last."""
        return self.imbalance, self.share


def layer_load(layer: int, tokens: Sequence[float], ranks: Sequence[int], dropped: float = 0.0) -> LayerLoad:
    """Of the tokens that each expert got; `ranks`: the rank of each expert, all of them from 0 on; `dropped`: tokens
    that no expert got."""
    by_rank = [0.0] * (max(ranks) + 1)
    for count, rank in zip(tokens, ranks, strict=True):
        by_rank[rank] += count
    whole = sum(tokens) or 1.0
    hottest = max(range(len(tokens)), key=lambda expert: (tokens[expert], -expert))
    imbalance = max(by_rank) * len(by_rank) / whole if any(tokens) else 1.0
    return LayerLoad(layer, imbalance, hottest, tokens[hottest] / whole, sum(not count for count in tokens),
                     dropped / (sum(tokens) + dropped or 1.0))


@dataclass(frozen=True)
class Balance:
    """All layers over some steps."""

    layers: tuple[LayerLoad, ...]

    @property
    def imbalance(self) -> float:
        """Mean over the layers, which wait for their busiest rank one after the other: how much longer the experts take
        than if their ranks were evenly busy."""
        return sum(one.imbalance for one in self.layers) / len(self.layers)

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda one: one.badness)
        idle = sum(one.idle for one in self.layers)
        dropped = sum(one.dropped for one in self.layers) / len(self.layers)
        return (f"experts {self.imbalance:.2f} x, layer {worst.layer} {worst.imbalance:.2f} x, its expert "
                f"{worst.expert} got {worst.share:.1%}" + (f", {idle} got nothing" if idle else "")
                + (f", dropped {dropped:.2%}" if dropped else ""))

    def page(self) -> list[str]:
        """Lines of a profile's summary: the worst layers."""
        worst = sorted(self.layers, key=lambda one: one.badness, reverse=True)[:SHOWN]
        return [f"Experts: the busiest rank of a layer got {self.imbalance:.2f} times the mean of its ranks.", "",
                "| layer | busiest rank / mean | busiest expert | its share | experts without a token | dropped |",
                "| --- | --- | --- | --- | --- | --- |",
                *(f"| {one.layer} | {one.imbalance:.2f} | {one.expert} | {one.share:.1%} | {one.idle} "
                  f"| {one.dropped:.2%} |" for one in worst), ""]


class ExpertLoad:
    """Tokens by layer and expert since each reader last asked; nothing for a model without experts."""

    def __init__(self, model: ParallelModel, readers: Sequence[str]) -> None:
        self._model = model
        self._sums: dict[str, torch.Tensor | None] = dict.fromkeys(readers)

    def add(self) -> None:
        """After a batch. Nothing is waited for."""
        load, self._model.load = self._model.load, None  # a batch that is left out has none
        if load is not None:
            for reader, before in self._sums.items():
                self._sums[reader] = load if before is None else before + load

    def take(self, reader: str) -> Balance | None:
        """Since the last call of this reader, as if experts had been where they are now; None if there was no batch."""
        counts = self.counts(reader)
        if counts is None:
            return None
        places = self._model.expert_ranks()
        return Balance(tuple(layer_load(layer, tokens, ranks, dropped)
                             for layer, ((*tokens, dropped), ranks) in enumerate(zip(counts, places, strict=True))))

    def counts(self, reader: str) -> Counts | None:
        """Likewise, by layer: the tokens of each expert and those that were dropped."""
        found, self._sums[reader] = self._sums[reader], None
        counts: Counts | None = None if found is None else found.tolist()
        return counts
