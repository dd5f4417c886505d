"""The layout that train.autotune has chosen: kept in the status, and told to all later generations."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.api.job import LayoutCandidate, LayoutEstimate, LayoutStatus, TrainingJobSpec
from trainyard.api.protocol import Measurement, RankProgress
from trainyard.layout.sizes import gang_sizes
from trainyard.plan.turn import Turn

SIZES = ("data", "shard", "tensor", "pipeline", "context", "expert")
AUTOTUNE = "autotune "  # the activity is `autotune 2/4`


def tuned(turn: Turn) -> str:
    """The name for the World of the next generation; empty: none was chosen."""
    told, status = turn.gang.progress, turn.status.layout
    if told is not None and told.tuned:
        return told.tuned
    if status is not None and (status.tuned or status.candidates):
        return status.tuned or ""
    return turn.world.tuned if turn.world else ""


def planned(turn: Turn) -> LayoutEstimate | None:
    """The layout of the full gang: as it was chosen before the start, or measured since."""
    rendering, status = turn.snap.rendering, turn.status.layout
    layout = rendering.layout if rendering is not None else None
    if layout is None or status is None or status.tuned is None:
        return layout
    return _named(layout.candidates or (), status.tuned) or layout


def with_measured(spec: TrainingJobSpec, before: LayoutStatus, told: RankProgress) -> LayoutStatus:
    """The status once the ranks have chosen; as it was, if they did not or it is known already."""
    if not told.tuned:
        return before
    rows = [_noted(row, told.measured or ()) for row in before.candidates or _unplanned(told)]
    chosen = _named(rows, told.tuned)
    if chosen is None or before.tuned == told.tuned:
        return before
    made = LayoutStatus(**chosen.model_dump(exclude={"name", "problem"}), tuned=told.tuned, candidates=rows)
    return made if spec.min_nodes is None else made.model_copy(update={"sizes": gang_sizes(spec, made)})


def readmitted(rendered: LayoutStatus, before: LayoutStatus | None) -> LayoutStatus:
    """The status of a job that is admitted again: what was measured holds for the same candidates."""
    names = [row.name for row in rendered.candidates or ()]
    if before is None or before.tuned is None or [row.name for row in before.candidates or ()] != names:
        return rendered
    return before


def _named(rows: Sequence[LayoutCandidate], name: str) -> LayoutCandidate | None:
    return next((row for row in rows if row.name == name), None)


def _unplanned(told: RankProgress) -> list[LayoutCandidate]:
    """Where the trainer has planned, as only files know the model."""
    sizes = {name: getattr(told, name) for name in SIZES}
    return [LayoutCandidate(name=each.name, explanation=each.layout, **(sizes if each.name == told.tuned else {}))
            for each in told.measured or ()]  # fmt: skip


def _noted(row: LayoutCandidate, measured: Sequence[Measurement]) -> LayoutCandidate:
    found = next((each for each in measured if each.name == row.name), None)
    if found is None:
        return row
    return row.model_copy(update={"measured_seconds_per_step": found.seconds_per_step, "problem": found.problem})
