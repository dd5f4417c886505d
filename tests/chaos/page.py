"""The table of docs/recovery.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.__main__ import machine

from chaos.results import PHASES, Result, quantile

TARGET = Path(__file__).resolve().parents[2] / "docs" / "recovery.md"
BEGIN, END = "<!-- chaos: written by make chaos -->", "<!-- end of chaos -->"
_ROW = re.compile(r"^\| (\d+[a-c]?) \|.*\|$", re.MULTILINE)


def row(result: Result) -> str:
    """One line of the table."""
    if not result.recovered:
        return f"| {result.key} | {result.name} | {'not measured | ' * 5}{_first(result.failed)} |"
    seconds, phases = result.seconds, result.phases()
    times = f"{statistics.median(seconds):.2f} / {quantile(seconds, 0.95):.2f} / {max(seconds):.2f} ({len(seconds)})"
    parts = ", ".join(f"{name} {phases[key]:.2f}" for key, name in PHASES.items() if key in phases)
    counted = max(each.counted for each in result.recovered)
    lost = max(each.lost for each in result.recovered)
    cells = [result.key, result.name, times, parts or "-", f"{lost} / {counted}", result.losses or "not compared",
             beside(result), _first(result.failed) or result.verdict() or "-"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def beside(result: Result) -> str:
    """What torchrun took."""
    if result.beside:
        seconds = statistics.median(each.seconds for each in result.beside)
        lost = max(each.lost for each in result.beside)
        assert result.median is not None
        return f"{seconds:.1f}, {lost} lost: {seconds / result.median:.1f} x"
    return result.beside_failed or "-"


def _first(failed: Sequence[str]) -> str:
    return "FAILED: " + failed[0].splitlines()[0][:160].replace("|", "/") if failed else ""


def table(results: Sequence[Result], load: float, old: str = "") -> str:
    """The section; rows of cases that were not run now stay as they are in `old`."""
    rows = {match[1]: match[0] for match in _ROW.finditer(old)}
    rows |= {result.key: row(result) for result in results}
    ordered = sorted(rows, key=lambda key: (int(key.rstrip("abc")), key))
    return "\n".join([
        BEGIN,
        f"Last run on {datetime.now(UTC):%Y-%m-%d}: {machine()}; three nodes of the built-in cluster share these "
        f"cores, on which the load was {load:.1f} before. "
        "Seconds from the fault to the next finished step of the whole job; phases are medians.",
        "",
        "| # | fault | p50 / p95 / worst (faults) | phases | steps lost / restarts counted | losses | torchrun | aim |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(rows[key] for key in ordered),
        END,
    ])  # fmt: skip


def write(results: Sequence[Result], load: float, *, page: bool) -> None:
    """Print it, and put it into the page. `load`: of the machine, before anything of this was started."""
    text = TARGET.read_text()
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    print(table(results, load))
    if page:
        made = table(results, load, found[0] if found else "")
        TARGET.write_text(text.replace(found[0], made) if found else f"{text.rstrip()}\n\n{made}\n")
