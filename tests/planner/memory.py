"""`python -m planner.memory [COUNT]`: estimated memory against the peak of live tensor bytes of real runs, of random
configurations of two ranks (20), and of products of layouts."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable

from trainyard.api.train import TrainConfig

from planner.cases import PRODUCTS, estimated, large_cases, memory_case, product
from planner.run import measure

MEGABYTE = 1e6


def compare(wanted: TrainConfig, ranks: int = 2) -> tuple[str, float, float]:
    """(layout, measured bytes, estimated bytes) on the fullest rank."""
    asked, each = estimated(wanted, ranks)
    found = max(rank["peak"] for rank in measure("memory", asked, ranks))
    return f"{each.layout}, {asked.precision}", found, each.memory.tensors


def table(cases: Iterable[tuple[TrainConfig, int]]) -> None:
    """Print measured and estimated memory of these, with so many ranks."""
    errors = []
    print("| configuration | measured MB | estimated MB | error |\n| --- | --- | --- | --- |", flush=True)
    for wanted, ranks in cases:
        layout, found, said = compare(wanted, ranks)
        errors.append(abs(said / found - 1))
        print(f"| {layout} | {found / MEGABYTE:.0f} | {said / MEGABYTE:.0f} | {said / found - 1:+.1%} |", flush=True)
    print(f"\nmedian error {statistics.median(errors):.1%}, worst {max(errors):.1%}, {len(errors)} configurations\n",
          flush=True)


def main(count: int) -> None:
    """Print both tables."""
    table((memory_case(number), 2) for number in large_cases(count))
    table(map(product, range(len(PRODUCTS))))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
