"""`python -m planner.seconds [COUNT]`: is the first choice of the planner the fastest on this machine?

Two ranks pinned to a core each. For every random model the best of each mesh is run, and the first choice compared with
the fastest that was measured; less than 5 % between two is a tie."""

from __future__ import annotations

import random
import statistics
import sys

from trainyard.api.train import TrainConfig
from trainyard.layout import Estimate, choose, settle

from planner.cases import train, workload
from planner.run import measure

STEPS = 4
MESHES = 5  # of each model that are run, fastest estimate first
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
    """The best of each mesh, the planner's first choice first."""
    return choose(workload(asked)).by_mesh()[:MESHES]


def seconds(asked: TrainConfig, each: Estimate) -> float:
    """The fastest of some steps; what slows one down is not the layout."""
    found = measure("time", settle(asked, workload(asked), each.layout), steps=STEPS)
    return float(min(max(times) for times in zip(*(rank["times"] for rank in found), strict=True)))


def compare(number: int) -> tuple[str, float, float, str]:
    """(first choice, its seconds a step, those of the fastest, which that is)."""
    asked = time_case(number)
    measured = {str(each.layout): seconds(asked, each) for each in candidates(asked)}
    first = next(iter(measured))
    best = min(measured, key=lambda name: measured[name])
    return first, measured[first], measured[best], best


def main(count: int) -> None:
    """Print the table."""
    ratios = []
    print("| model | first choice | s a step | fastest measured | s a step | ratio |\n"
          "| --- | --- | --- | --- | --- | --- |", flush=True)
    for number in range(count):
        first, mine, least, best = compare(number)
        ratios.append(mine / least if mine > least * TIE else 1.0)
        print(f"| {number} | {first} | {mine:.3f} | {best} | {least:.3f} | {ratios[-1]:.2f} |", flush=True)
    missed = sum(ratio > AIM for ratio in ratios)
    print(f"\nfirst choice against the fastest: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}; "
          f"{missed} of {count} models above {AIM:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
