"""Experts that are too busy together part: between two steps they change places, with all that belongs to them.

Nothing that is computed changes by it, only where: an expert gets the same tokens in the same order as before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from trainyard.api.train import ExpertsConfig

from trainer.checkpoint.memory import local_of
from trainer.checkpoint.saver import State
from trainer.distributed import Gang, gather, say, tell_all
from trainer.errors import ConfigError
from trainer.model.names import DOWN, GATE_UP
from trainer.model.weights import local_slice
from trainer.parallel import places
from trainer.parallel.load import ExpertLoad, layer_load
from trainer.parallel.model import ParallelModel
from trainer.parallel.places import Places

READER = "moves"  # of ExpertLoad
ABOVE = 1.1
BYTES = 64 << 20  # of an expert's tensor that are sent at a time

Where = tuple[slice, ...]


class ExpertMoves:
    """Moves experts every so many steps, if the ranks that share them out are unevenly busy."""

    def __init__(self, asked: ExpertsConfig | None, gang: Gang, model: ParallelModel, load: ExpertLoad) -> None:
        """Raises ConfigError for more experts than can be kept track of."""
        self._gang, self._model, self._load = gang, model, load
        self._every = asked.move_every if asked is not None else None
        self._above = asked.move_above if asked is not None and asked.move_above is not None else ABOVE
        if self._every is None:
            return
        layers, experts = model.config.num_hidden_layers, model.config.num_local_experts
        if layers * experts > places.MOST:
            raise ConfigError(f"train.experts.moveEvery is for {places.MOST} experts at most, all layers together, "
                              f"found {layers} x {experts}; leave it out")
        if model.layout.expert in (1, experts):
            why = "experts are not shared out (parallel.expert is 1)" if model.layout.expert == 1 else \
                "every rank has one expert of a layer"
            say(gang, f"train.experts.moveEvery: nothing to move, {why}")
            self._every = None

    def after(self, step: int, state: Callable[[], State]) -> None:
        """After a finished step, on every rank."""
        if self._every is None or step % self._every:
            return
        counts = self._load.counts(READER)
        if counts is None:
            return
        tokens = [layer[:-1] for layer in counts]
        before = self._model.places
        # Ranks have the same sums; that they also come to the same conclusion is not left to their arithmetic.
        after = tell_all(self._gang, lambda: self._plan(tokens))
        changed = sum(len(_moved(*layers)) for layers in zip(before, after, strict=True))
        if not changed:
            return
        started = time.monotonic()
        exchange(self._model, state(), before, after, self._gang)
        was = self._imbalance(tokens)
        self._model.place_experts(after)
        say(self._gang, f"step {step}: {changed} experts moved in {time.monotonic() - started:.2f} s; the busiest rank "
                        f"of a layer got {was:.2f} times the mean, now it would be {self._imbalance(tokens):.2f}")

    def _plan(self, tokens: Sequence[Sequence[float]]) -> Places:
        return [places.plan(counts, layer, self._model.layout.expert, self._above)
                for counts, layer in zip(tokens, self._model.places, strict=True)]

    def _imbalance(self, tokens: Sequence[Sequence[float]]) -> float:
        found = [layer_load(layer, counts, ranks).imbalance
                 for layer, (counts, ranks) in enumerate(zip(tokens, self._model.expert_ranks(), strict=True))]
        return sum(found) / len(found)


@dataclass(frozen=True)
class _Move:
    """Some rows of what is at one place of the stack go to another."""

    source: int  # places
    target: int
    first: int  # rows
    stop: int


def exchange(model: ParallelModel, state: State, before: Places, after: Places, gang: Gang) -> None:
    """Move the tensors of `state` (parameters and moments) that belong to experts, in place, from their places before
    to those after. Every rank calls this; ranks with the same experts each move what they have."""
    group = model.mesh.expert_group
    kinds = (GATE_UP, DOWN)
    here = [layer for layer, _ in model.blocks()]
    everybody = gather(gang, [local_slice(state["model"][f"model.layers.{here[0]}{kind}"])[1] for kind in kinds])
    holders = [everybody[rank] for rank in dist.get_process_group_ranks(group)]  # of every layer the same parts
    for layer in here:
        pairs = _moved(before[layer], after[layer])
        for number, kind in enumerate(kinds) if pairs else ():
            parts = [one[number] for one in holders]
            for tensor in (tensors[f"model.layers.{layer}{kind}"] for tensors in state.values()):
                for moves in _portions(pairs, tensor):
                    _send(local_of(tensor), parts, moves, group, model.mesh.device)


def _moved(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """Places before and after of those experts of a layer for which they differ."""
    return [(source, target) for source, target in zip(old, new, strict=True) if source != target]


def _portions(pairs: Sequence[tuple[int, int]], tensor: torch.Tensor) -> Iterator[list[_Move]]:
    """Rows of all moves that are sent at a time, so that what is on its way stays small beside an expert."""
    rows = tensor.shape[1]
    step = max(1, BYTES // (tensor.shape[2] * tensor.element_size()))
    for first in range(0, rows, step):
        yield [_Move(source, target, first, min(first + step, rows)) for source, target in pairs]


def _send(local: torch.Tensor, holders: Sequence[Where], moves: Sequence[_Move], group: Any,
          device: torch.device) -> None:
    """One all-to-all of one tensor; `holders`: which part of the whole each rank of the group has."""
    me = dist.get_rank(group)

    def parts(giver: int, taker: int) -> Iterator[tuple[_Move, slice]]:
        for move in moves:
            rows = _common(holders[giver], move.source, holders[taker], move.target, move)
            if rows is not None:
                yield move, rows

    def views(place: Callable[[_Move], int], pairs: Iterator[tuple[_Move, slice]]) -> list[torch.Tensor]:
        stack, lines, *_ = holders[me]
        return [local[place(move) - stack.start, rows.start - lines.start: rows.stop - lines.start]
                for move, rows in pairs]

    ranks = range(len(holders))
    give = [views(lambda move: move.source, parts(me, rank)) for rank in ranks]
    take = [views(lambda move: move.target, parts(rank, me)) for rank in ranks]
    flat = [view.reshape(-1) for row in give for view in row]
    sent = torch.cat(flat).to(device) if flat else torch.empty(0, dtype=local.dtype, device=device)
    given, taken = ([sum(view.numel() for view in row) for row in side] for side in (give, take))
    received = torch.empty(sum(taken), dtype=local.dtype, device=device)
    dist.all_to_all_single(received, sent, taken, given, group=group)
    at = 0
    for view in (view for row in take for view in row):
        view.copy_(received[at: at + view.numel()].view(view.shape))
        at += view.numel()


def _common(giver: Where, source: int, taker: Where, target: int, move: _Move) -> slice | None:
    """Rows of a move that go from one rank to another."""
    if not (giver[0].start <= source < giver[0].stop and taker[0].start <= target < taker[0].stop):
        return None
    first = max(giver[1].start, taker[1].start, move.first)
    stop = min(giver[1].stop, taker[1].stop, move.stop)
    return slice(first, stop) if first < stop else None
