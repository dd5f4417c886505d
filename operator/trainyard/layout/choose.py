"""Enumerates the legal layouts of a workload, estimates each and ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from trainyard.layout import legal
from trainyard.layout.cost import seconds
from trainyard.layout.hardware import GB
from trainyard.layout.memory import memory
from trainyard.layout.problems import LayoutDoesNotFit, divisors
from trainyard.layout.split import split
from trainyard.layout.types import Estimate, Layout, Recompute, Schedule, Seconds, Workload

POSITIONS = 1024  # a context rank has as many at least, unless nothing else is legal
MOST = 8192  # ranks up to which a job that does not fit is tried on more
MICRO = 16  # largest micro-batch that is tried
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")  # fastest first
SAME = 0.01  # layouts that are so near in time are taken in the order of their simplicity


@dataclass(frozen=True)
class Ranking:
    """All legal layouts with their estimates: those that fit, fastest first, then the others, smallest first."""

    work: Workload
    estimates: tuple[Estimate, ...]

    @cached_property
    def fitting(self) -> tuple[Estimate, ...]:
        """Those that fit."""
        return tuple(each for each in self.estimates if each.fits)

    @property
    def best(self) -> Estimate:
        """The fastest that fits; among equals the simplest. Raises LayoutDoesNotFit with the nearest that would."""
        if not self.fitting:
            raise LayoutDoesNotFit(does_not_fit(self))
        limit = self.fitting[0].seconds.total * (1 + SAME)
        near = [each for each in self.fitting if each.seconds.total <= limit]
        return min(near, key=simplicity)

    def by_mesh(self) -> list[Estimate]:
        """The best of each mesh: the chosen one first, then in order."""
        first = self.best if self.fitting else self.estimates[0]
        found = {mesh_of(first.layout): first}
        for each in self.estimates:
            found.setdefault(mesh_of(each.layout), each)
        return list(found.values())


def choose(work: Workload) -> Ranking:
    """Every legal layout, ranked. Raises InvalidLayout if there is none."""
    legal.check(work)
    found = list(_estimates(work, POSITIONS))
    if not any(each.fits for each in found):
        found += list(_estimates(work, 1))
    if not found:
        raise legal.nothing_left(work, shapes)
    found.sort(key=lambda each: (not each.fits, each.seconds.total if each.fits else each.memory.total))
    return Ranking(work, tuple(found))


def estimate(work: Workload, layout: Layout) -> Estimate:
    """One layout's memory, and if it fits its time."""
    need = memory(work, layout)
    room = work.hardware.memory
    fits = room == 0 or need.total <= room
    return Estimate(layout, need, seconds(work, layout) if fits else Seconds(), fits)


def _estimates(work: Workload, positions: int) -> Iterator[Estimate]:
    for mesh in meshes(work, positions):
        full: set[tuple[Schedule, int]] = set()  # larger micro-batches of these take more still
        for shaped in _schedules(work, mesh):
            kind = shaped.schedule, shaped.chunks
            if kind in full:
                continue
            for each in _fitted(work, shaped):
                if not each.fits and each.layout.zero == (work.asked.zero or (2 if shaped.schedule == "ZBV" else 3)):
                    full.add(kind)
                yield each


def shapes(work: Workload) -> Iterator[Layout]:
    """Every legal layout, whatever it takes; ZeRO and recomputation are still open."""
    for mesh in meshes(work, 1):
        yield from _schedules(work, mesh)


def meshes(work: Workload, positions: int = POSITIONS) -> Iterator[Layout]:
    """Sizes of all dimensions, with as little chosen of the rest as possible; what was asked for is kept. A tensor
    group never leaves its node unless it was asked to."""
    asked, node = work.asked, work.hardware.node
    tensors = [asked.tensor] if asked.tensor else [n for n in legal.tensor_sizes(work) if n <= node and node % n == 0]
    contexts = [asked.context] if asked.context else [
        n for n in legal.context_sizes(work)
        if n == 1 or (work.sequence // n >= positions and n <= 64 and n % (asked.ulysses or 1) == 0)
    ]  # fmt: skip
    for tensor in tensors:
        for context in contexts:
            if work.ranks % (tensor * context) or work.sequence // context % tensor:
                continue
            for ulysses in _ulysses(work, tensor, context):
                yield from _data_and_pipeline(work, Layout(tensor=tensor, context=context, ulysses=ulysses))


def _ulysses(work: Workload, tensor: int, context: int) -> list[int]:
    """What was asked for; else as much as the key-value heads allow, for exchanging heads is cheaper than a ring, and
    the same inside a node if that is less."""
    sizes = legal.ulysses_sizes(work, tensor, context)
    if work.asked.ulysses:
        return [work.asked.ulysses] if work.asked.ulysses in sizes else []
    sizes = [n for n in sizes if (work.shape.kv_heads // tensor) % n == 0]
    return sorted({max(each) for each in (sizes, [n for n in sizes if tensor * n <= work.hardware.node]) if each})


def _data_and_pipeline(work: Workload, base: Layout) -> Iterator[Layout]:
    asked, rest = work.asked, work.ranks // (base.tensor * base.context)
    micro = work.micro or 1
    for pipeline in [asked.pipeline] if asked.pipeline else divisors(rest):
        if rest % pipeline or pipeline > work.shape.layers or pipeline * micro > work.batch:
            continue
        if pipeline > 1 and work.shape.tied:
            continue
        share = rest // pipeline
        if work.batch % (share * micro):
            continue
        for shard in [asked.shard] if asked.shard else divisors(share):
            data = share // shard if share % shard == 0 else 0
            if data == 0 or (asked.data or data) != data:
                continue
            for expert in _experts(work, shard * base.context * base.tensor):
                yield replace(base, pipeline=pipeline, shard=shard, data=data, expert=expert)


def _experts(work: Workload, holders: int) -> list[int]:
    if not work.shape.experts:
        return [1]
    sizes = [n for n in divisors(work.shape.experts) if holders % n == 0]
    return [n for n in sizes if n == work.asked.expert] if work.asked.expert else sizes


def _schedules(work: Workload, mesh: Layout) -> Iterator[Layout]:
    """The mesh with every micro-batch and schedule that goes with it, smallest micro-batch first."""
    share = work.batch // (mesh.data * mesh.shard)
    for micro in [work.micro] if work.micro else [n for n in divisors(share) if n <= MICRO]:
        micros = share // micro
        for schedule, chunks in _kinds(work, mesh.pipeline):
            if not legal.schedule_works(schedule, mesh.pipeline, chunks, micros):
                continue
            stages = mesh.pipeline * chunks
            layers = tuple(work.asked.stage_layers or split(work.shape, work.sequence, stages)) if stages > 1 else ()
            shaped = replace(mesh, micro=micro, schedule=schedule, stage_layers=layers)
            if not work.overlap or legal.overlap_works(shaped):
                yield shaped


def _kinds(work: Workload, pipeline: int) -> list[tuple[Schedule, int]]:
    asked = work.asked
    if pipeline == 1:
        return [] if asked.stage_layers or asked.schedule else [("1F1B", 1)]
    kinds: list[tuple[Schedule, int]] = [("1F1B", 1), ("Interleaved1F1B", 2), ("ZBV", 2)]
    if asked.stage_layers:
        chunks, more = divmod(len(asked.stage_layers), pipeline)
        kinds = [] if more else [(name, chunks) for name, _ in kinds]
    return [(name, chunks) for name, chunks in kinds
            if asked.schedule in (None, name) and pipeline * chunks <= work.shape.layers
            and (name != "ZBV" or legal.zbv_works(asked.zero or 2, work.recompute))]


def _fitted(work: Workload, layout: Layout) -> Iterator[Estimate]:
    """With parameters kept or gathered again, and with as little recomputation as makes it fit."""
    zeros: list[Literal[2, 3]] = [work.asked.zero] if work.asked.zero else [3]
    if layout.schedule == "ZBV":
        zeros = [2]
    elif not work.asked.zero and layout.sharding > 1:
        zeros = [3, 2]
    modes = [mode for mode in ([work.recompute] if work.recompute else RECOMPUTE)
             if layout.schedule != "ZBV" or legal.zbv_works(2, mode)]
    for zero in zeros:
        for recompute in modes:
            found = estimate(work, replace(layout, zero=zero, recompute=recompute))
            if found.fits:
                break
        yield found
        if not found.fits:
            return  # ZeRO-2 takes more than ZeRO-3


def mesh_of(layout: Layout) -> tuple[int, ...]:
    """The sizes of all dimensions."""
    return layout.data, layout.shard, layout.tensor, layout.pipeline, layout.context, layout.expert


def simplicity(each: Estimate) -> tuple[int, float, float]:
    """Sorts layouts of about the same time: the simplest first."""
    layout = each.layout
    used = sum(size > 1 for size in (layout.tensor, layout.pipeline, layout.context, layout.expert))
    return used + (layout.schedule != "1F1B") + (layout.data > 1), each.seconds.total, each.memory.total


def does_not_fit(ranking: Ranking) -> str:
    """What the smallest layout takes, and what would fit: something set differently, or more devices."""
    work, smallest = ranking.work, ranking.estimates[0]
    said = (f"no legal layout of {work.ranks} x {work.hardware.name} fits: the smallest ({smallest.layout}) takes "
            f"{smallest.memory.total / GB:.1f} GB a device, there are {work.hardware.memory / GB:.1f} GB")
    near = nearest_fitting(work)
    return f"{said}. {'Would fit: ' + '; '.join(near) if near else 'Nothing near it would fit'}."


def nearest_fitting(work: Workload, most: int = 3) -> list[str]:
    """Changes to the manifest, each by itself, with which a layout fits."""
    found: list[str] = []
    for change, changed in _changes(work):
        try:
            ranking = choose(changed)
        except ValueError:
            continue
        if not ranking.fitting:
            continue
        best = ranking.best
        found.append(f"{change} ({best.layout}, {best.memory.total / GB:.1f} GB)")
        if len(found) == most or changed.ranks > work.ranks:
            break
    return found


def _changes(work: Workload) -> Iterator[tuple[str, Workload]]:
    said = work.asked.model_dump(exclude_none=True)
    for name in said:
        yield f"without parallel.{name}", replace(work, asked=work.asked.model_copy(update={name: None}))
    if work.recompute not in (None, "full"):
        yield "activationCheckpointing full", replace(work, recompute="full")
    if work.micro not in (None, 1):
        yield "microBatchSize 1", replace(work, micro=1)
    if len(said) > 1:
        yield "with parallel empty", replace(work, asked=type(work.asked)())
    nodes = work.ranks // work.hardware.node or 1
    for factor in (2, 4, 8, 16, 32):
        if work.ranks * factor > MOST:
            break
        batch = work.batch if work.batch % (work.ranks * factor) == 0 else work.batch * factor
        more = f"{nodes * factor} nodes" + (f" with batchSize {batch}" if batch != work.batch else "")
        yield more, replace(work, ranks=work.ranks * factor, batch=batch, asked=type(work.asked)())
