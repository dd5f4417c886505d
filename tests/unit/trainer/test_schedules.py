"""The planner's bubble against a discrete-event simulation of the very schedules that torch will run: its own lists of
what each rank does, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torchs
from trainer.parallel.layout import Layout as TrainerLayout
from trainer.parallel.pipeline import SCHEDULES, owner
from trainyard.layout.choose import estimate
from trainyard.layout.split import split
from trainyard.layout.types import Layout, Schedule
from unit.layout.workloads import workload

THIRDS = {torchs._ComputationType.FORWARD: 1, torchs._ComputationType.BACKWARD_INPUT: 1,
          torchs._ComputationType.BACKWARD_WEIGHT: 1, torchs._ComputationType.FULL_BACKWARD: 2}  # fmt: skip


def orders(schedule: Schedule, ranks: int, micros: int) -> list[list[Any]]:
    """What each rank does. The schedules want stages with modules in them only for what comes after this."""
    made = object.__new__(SCHEDULES[schedule])
    made.pp_group_size, made.n_local_stages, made.num_stages, made._n_microbatches = ranks, 2, 2 * ranks, micros
    made.number_of_rounds = max(1, micros // ranks)
    made.microbatches_per_round = micros // made.number_of_rounds
    found = []
    for rank in range(ranks):
        made.rank = rank
        found.append([each for each in made._calculate_single_rank_operations(rank) if each is not None])
    return found


def simulate(schedule: Schedule, seconds: list[float], ranks: int, micros: int) -> float:
    """Seconds of a step; `seconds`: forward and backward of one micro-batch at each stage."""
    stages = len(seconds)
    layout = TrainerLayout(pipeline=ranks, schedule=schedule, stage_layers=(1,) * stages)
    queues = orders(schedule, ranks, micros)
    kinds = torchs._ComputationType
    done: dict[tuple[str, int, int], float] = {}
    clock, at, left = [0.0] * ranks, [0] * ranks, sum(map(len, queues))
    while left:
        before_round = left
        for rank in range(ranks):
            while at[rank] < len(queues[rank]):
                kind, stage, micro = (getattr(queues[rank][at[rank]], name) for name in (
                    "computation_type", "stage_index", "microbatch_index"))  # fmt: skip
                assert owner(stage, layout) == rank
                needs = {kinds.FORWARD: ("F", stage - 1), kinds.BACKWARD_WEIGHT: ("B", stage)}.get(
                    kind, ("B", stage + 1) if stage + 1 < stages else ("F", stage))  # fmt: skip
                ready = done.get((*needs, micro), 0.0 if needs[1] < 0 else None)
                if ready is None:
                    break
                clock[rank] = max(clock[rank], ready) + seconds[stage] * THIRDS[kind] / 3
                if kind is not kinds.BACKWARD_WEIGHT:
                    done["F" if kind is kinds.FORWARD else "B", stage, micro] = clock[rank]
                at[rank] += 1
                left -= 1
        assert left < before_round, "the schedule blocks"
    return max(clock)


@pytest.mark.parametrize("schedule", ["Interleaved1F1B", "ZBV"])
@pytest.mark.parametrize(("devices", "pipeline", "batch"), [
    (4, 4, 8), (8, 4, 16), (64, 8, 128), (256, 16, 512), (1024, 32, 2048), (4096, 16, 8192),
])  # fmt: skip
def test_bubble(schedule: Schedule, devices: int, pipeline: int, batch: int) -> None:
    work = workload("70b", devices, "910B", batchSize=batch)
    work = replace(work, hardware=replace(work.hardware, memory=0))
    layers = split(work.shape, work.sequence, 2 * pipeline)
    layout = Layout(shard=devices // pipeline, pipeline=pipeline, zero=2, schedule=schedule, stage_layers=layers)
    micros = layout.micro_batches(batch)
    assert micros >= 2 * pipeline - 1
    said = estimate(work, layout).seconds
    head = work.shape.head_flops / (work.shape.layer_flops + work.shape.attention_flops(work.sequence))
    weights = [count + (head if stage == 2 * pipeline - 1 else 0.0) for stage, count in enumerate(layers)]
    loads = [0.0] * pipeline
    places = TrainerLayout(pipeline=pipeline, schedule=schedule, stage_layers=tuple(layers))
    for stage, weight in enumerate(weights):
        loads[owner(stage, places)] += weight
    one = said.compute / micros / max(loads)  # of one layer, on the slowest rank
    found = simulate(schedule, [one * weight for weight in weights], pipeline, micros)
    estimated = said.compute + said.bubble
    print(f"{schedule} {pipeline} ranks, {micros} micro-batches: {estimated:.2f} s estimated, {found:.2f} s simulated "
          f"({estimated / found - 1:+.1%})")
    assert estimated == pytest.approx(found, rel=0.05)
