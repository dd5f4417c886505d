"""The bubble of the formulas against a discrete-event simulation of 1F1B."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainyard.layout.choose import estimate
from trainyard.layout.split import split
from trainyard.layout.types import Layout
from unit.layout.workloads import workload


def order(rank: int, ranks: int, micros: int) -> list[tuple[str, int]]:
    """What a rank does, in turn: warm up, one forward and one backward alternating, drain."""
    warm = min(micros, ranks - rank - 1)
    made = [("F", number) for number in range(warm)]
    for number in range(micros - warm):
        made += [("F", warm + number), ("B", number)]
    return made + [("B", number) for number in range(micros - warm, micros)]


def simulate(seconds: list[float], micros: int) -> float:
    """Seconds of a step; `seconds`: forward and backward of one micro-batch on each rank, a third of it forward."""
    ranks = len(seconds)
    queues = [order(rank, ranks, micros) for rank in range(ranks)]
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * ranks
    at = [0] * ranks
    left = sum(map(len, queues))
    while left:
        for rank in range(ranks):
            while at[rank] < len(queues[rank]):
                kind, number = queues[rank][at[rank]]
                before = ("F", rank - 1, number) if kind == "F" else ("B", rank + 1, number)
                if 0 <= before[1] < ranks and before not in done:
                    break
                start = max(clock[rank], done.get(before, 0.0))
                clock[rank] = start + seconds[rank] * (1 / 3 if kind == "F" else 2 / 3)
                done[kind, rank, number] = clock[rank]
                at[rank] += 1
                left -= 1
    return max(clock)


@pytest.mark.parametrize(("devices", "pipeline", "batch"), [
    (4, 4, 8), (8, 4, 16), (64, 8, 128), (256, 16, 512), (1024, 32, 1024), (4096, 64, 4096), (4096, 16, 8192),
])  # fmt: skip
def test_1f1b(devices: int, pipeline: int, batch: int) -> None:
    work = workload("70b", devices, "910B", batchSize=batch)
    work = replace(work, hardware=replace(work.hardware, memory=0))
    layers = split(work.shape, work.sequence, pipeline)
    layout = Layout(shard=devices // pipeline, pipeline=pipeline, zero=2, stage_layers=layers)
    micros = layout.micro_batches(batch)
    assert micros >= pipeline
    said = estimate(work, layout).seconds
    one = said.compute / micros  # of the slowest rank
    head = 3 * work.shape.head_flops / (3 * (work.shape.layer_flops + work.shape.attention_flops(work.sequence)))
    weights = [count + (head if rank == pipeline - 1 else 0.0) for rank, count in enumerate(layers)]
    times = [one * weight / max(weights) for weight in weights]
    assert said.compute + said.bubble == pytest.approx(simulate(times, micros), rel=0.05)
