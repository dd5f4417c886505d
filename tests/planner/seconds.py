"""`python -m planner.seconds [COUNT [FIRST]]` (20 20): is the first choice of the planner the fastest on this machine?

Two ranks pinned to a core each. For every random model the best of each mesh is run, all in turn and then once more, as
what slows the machine down for some seconds is not the layout; the first choice is compared with the fastest that was
measured. Less than 5 % between two is a tie. A layout that fails counts as endless.

The CPU's row of hardware.py was fitted to models 0 to 19: others tell whether it holds."""

from __future__ import annotations

import math
import random
import statistics
import sys
from dataclasses import replace

from trainyard.api.train import TrainConfig
from trainyard.layout import Estimate, InvalidLayout, choose, settle

from planner.cases import train, workload
from planner.run import measure

STEPS = 4, 20  # at least and at most, that are measured of a layout
LONG = 2.0  # s of steps that are enough
TURNS = 2
TIE = 1.05
AIM = 1.10


def time_case(number: int) -> TrainConfig:
    """The number-th random model, the same each time, of some million parameters; only the batch is set."""
    draw = random.Random(1000 + number)
    heads = draw.choice([4, 8])
    config = {
        "hidden_size": heads * draw.choice([32, 64]), "intermediate_size": draw.choice([512, 1024]),
        "num_hidden_layers": draw.choice([2, 4, 6]), "num_attention_heads": heads, "num_key_value_heads": 4,
        "vocab_size": draw.choice([512, 4096, 16384]), "max_position_embeddings": 1024,
    }  # fmt: skip
    return train(config, draw.choice([128, 256, 512]), batchSize=draw.choice([4, 8]), precision="fp32")


def candidates(asked: TrainConfig) -> list[Estimate]:
    """The best of every mesh of two ranks, the planner's first choice first; also with the sequence spread, which the
    planner leaves out where it is as short as here."""
    work = workload(asked)
    found = choose(work).by_mesh()
    try:
        return found + choose(replace(work, asked=work.asked.model_copy(update={"context": 2}))).by_mesh()
    except InvalidLayout:  # it does not divide
        return found


def seconds(asked: TrainConfig, each: Estimate) -> float:
    """The fastest of some steps."""
    steps = min(max(STEPS[0], math.ceil(LONG / each.seconds.total)), STEPS[1])
    try:
        found = measure("time", settle(asked, workload(asked), each.layout), steps=steps)
    except RuntimeError as error:
        print(f"{each.layout}: {error}", file=sys.stderr, flush=True)
        return math.inf
    return float(min(max(times) for times in zip(*(rank["times"] for rank in found), strict=True)))


def compare(number: int) -> tuple[str, float, float, str]:
    """(first choice, its seconds a step, those of the fastest, which that is)."""
    asked = time_case(number)
    found = candidates(asked)
    measured = {str(each.layout): math.inf for each in found}
    for each in found * TURNS:
        measured[str(each.layout)] = min(measured[str(each.layout)], seconds(asked, each))
    for each in found:
        print(f"model {number}, {each.layout}: estimated {each.seconds.total:.3f} s, measured "
              f"{measured[str(each.layout)]:.3f} s", file=sys.stderr, flush=True)
    first = next(iter(measured))
    best = min(measured, key=lambda name: measured[name])
    return first, measured[first], measured[best], best


def main(count: int, start: int) -> None:
    """Print the table."""
    ratios = []
    print("| model | first choice | s a step | fastest measured | s a step | ratio |\n"
          "| --- | --- | --- | --- | --- | --- |", flush=True)
    for number in range(start, start + count):
        first, mine, least, best = compare(number)
        ratios.append(mine / least if mine > least * TIE else 1.0)
        print(f"| {number} | {first} | {mine:.3f} | {best} | {least:.3f} | {ratios[-1]:.2f} |", flush=True)
    missed = sum(ratio > AIM for ratio in ratios)
    print(f"\nfirst choice against the fastest: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}; "
          f"{missed} of {count} models above {AIM:.2f}")


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    main(*(given + [20, 20][len(given):]))
