"""`python -m planner.memory [COUNT]`: estimated memory against the peak of live tensor bytes of real runs."""

from __future__ import annotations

import statistics
import sys

from planner.cases import estimated, large_cases, memory_case
from planner.run import measure

MEGABYTE = 1e6


def compare(number: int) -> tuple[str, float, float]:
    """(layout, measured bytes, estimated bytes) of a random configuration, on its fullest rank."""
    asked, each = estimated(memory_case(number))
    found = max(rank["peak"] for rank in measure("memory", asked))
    return f"{each.layout}, {asked.precision}", found, each.memory.tensors


def main(count: int) -> None:
    """Print the table."""
    errors = []
    print("| configuration | measured MB | estimated MB | error |\n| --- | --- | --- | --- |", flush=True)
    for number in large_cases(count):
        layout, found, said = compare(number)
        errors.append(abs(said / found - 1))
        print(f"| {layout} | {found / MEGABYTE:.0f} | {said / MEGABYTE:.0f} | {said / found - 1:+.1%} |", flush=True)
    print(f"\nmedian error {statistics.median(errors):.1%}, worst {max(errors):.1%}, {count} configurations")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
