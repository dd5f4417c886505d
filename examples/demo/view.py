"""The live view: state, step, loss, tokens/s and ETA of the job, its pods, and what has happened so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Object = Mapping[str, Any]
_COLOURS = {"Running": "green", "Succeeded": "bold green", "Failed": "bold red", "Recovering": "yellow"}


class View:
    """A live panel on a terminal; plain lines, one for each change, anywhere else."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.start = time.monotonic()
        self.story: list[str] = []
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._printed = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def tell(self, line: str) -> None:
        """Add a line to the story."""
        stamped = f"{time.monotonic() - self.start:6.1f} s  {line}"
        self.story.append(stamped)
        if not self._live:
            self.console.print(stamped, highlight=False)

    def show(self, status: Object, pods: Sequence[Object]) -> None:
        """Draw the job as it is now."""
        if self._live:
            self._live.update(self._panel(status, pods))
            return
        line = " ".join(_facts(status).values())
        if line != self._printed:
            self._printed = line
            self.console.print(f"{time.monotonic() - self.start:6.1f} s  {line}", highlight=False)

    def _panel(self, status: Object, pods: Sequence[Object]) -> Panel:
        facts = _facts(status)
        table = Table.grid(padding=(0, 3))
        table.add_row(*(Text(name, style="dim") for name in facts))
        table.add_row(*(Text(value, style=_COLOURS.get(value, "bold")) for value in facts.values()))
        progress = status.get("progress") or {}
        bar = ProgressBar(total=progress.get("steps") or 100, completed=progress.get("step", 0), width=72)
        gang = Table.grid(padding=(0, 3))
        for pod in pods:
            gang.add_row(pod["metadata"]["name"], pod["spec"].get("nodeName", "-"), _phase(pod))
        story = Text("\n".join(self.story[-10:]))
        return Panel(Group(table, Text(), bar, Text(), gang, Text(), story), title=self.title, width=100)


def _phase(pod: Object) -> Text:
    if "deletionTimestamp" in pod["metadata"]:
        return Text("Terminating", style="yellow")
    phase = pod["status"].get("phase", "Pending")
    return Text(phase, style=_COLOURS.get(phase, "yellow"))


def _facts(status: Object) -> dict[str, str]:
    progress = status.get("progress") or {}
    step, steps = progress.get("step"), progress.get("steps")
    return {
        "STATE": status.get("state") or "Pending",
        "STEP": f"{step}/{steps}" if step is not None else "-",
        "LOSS": str(progress.get("loss") or "-"),
        "TOKENS/S": str(progress.get("tokensPerSecond") or "-"),
        "ETA": str(progress.get("eta") or "-"),
        "RESTARTS": str((status.get("restarts") or {}).get("total", 0)),
    }
