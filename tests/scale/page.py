"""The scale section of docs/figures.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
BEGIN, END = "<!-- scale: written by make bench-scale -->", "<!-- end of scale -->"


def table(results: Sequence[Any], where: str) -> str:
    """The section, markers included."""
    lines = [
        BEGIN, "## Scale", "",
        f"Printed by `make bench-scale` on {datetime.now(UTC):%Y-%m-%d}: {where}. One pod a node, 8 devices each; "
        "nodes simulated by KWOK, control plane and operator real, all on these cores. Seconds from the request until "
        "all pods are created / bound / Running.", "",
        "| pods | TrainingJob | Indexed Job | until bound | operator CPU | operator RSS (peak) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for each in results:
        gang, job = (" / ".join(f"{seconds:.1f}" for seconds in times) for times in (each.gang, each.job))
        lines.append(f"| {each.size} | {gang} | {job} | {each.gang[1] / each.job[1]:.2f} x | {each.cpu:.1f} s | "
                     f"{each.resident:.0f} MB ({each.peak:.0f}) |")
    for each in results:
        if each.whole:
            lines += ["", f"One pod of {each.size} lost: all Running again in the World's next generation after "
                      f"{statistics.median(each.whole):.2f} s (median of {len(each.whole)}, "
                      f"{min(each.whole):.2f} to {max(each.whole):.2f})."]
    return "\n".join([*lines, END])


def write(results: Sequence[Any], where: str, *, page: bool) -> None:
    """Print it, and put it into the page in the place of what was there."""
    made = table(results, where)
    print(made)
    if not page:
        return
    text = TARGET.read_text()
    old = section(text)
    TARGET.write_text(text.replace(old, made) if old else f"{text.rstrip()}\n\n{made}\n")


def section(text: str) -> str:
    """The section of a page, empty if it has none."""
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    return found[0] if found else ""
