"""How far training is: step, loss, speed and the time of its end, as rank 0 reports them."""

from __future__ import annotations

from datetime import timedelta

from trainyard.api.job import CheckpointStatus, LayoutStatus, Progress, TrainingJobStatus
from trainyard.api.protocol import RankProgress
from trainyard.plan.conditions import holds
from trainyard.plan.nodes import seconds_per_step
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.tuned import SIZES, with_measured
from trainyard.plan.turn import Turn

EVERY_SECONDS = 5.0  # a status is written for progress alone at most this often
LONGEST = timedelta(days=3650)  # an ETA beyond this says nothing


def progress(turn: Turn) -> Turn:
    """The newest progress; a status that would differ in nothing else waits until the last one is 5 s old."""
    fresh = current(turn)
    before, after = turn.snap.status.progress, fresh.status
    if _shown(turn.snap.status) == _shown(after) or before is None or before.updated is None:
        return fresh
    left = EVERY_SECONDS - seconds_between(moment(before.updated) or turn.now, turn.now)
    if left <= 0 or turn.status.conditions != turn.snap.status.conditions:
        return fresh
    return turn.look_again(left)


def _shown(status: TrainingJobStatus) -> tuple[object, ...]:
    return status.progress, status.layout, status.checkpoint


def current(turn: Turn) -> Turn:
    """The status with what rank 0 last said, however recent the last write is."""
    told = turn.gang.progress
    if told is None:
        return _unprotected(turn)
    made = _made(turn, told)
    changes: dict[str, object] = {"progress": made}
    layout = {name: size for name in SIZES if (size := getattr(told, name)) is not None}
    if layout:  # the estimate stays if it is about this layout
        before = with_measured(turn.spec, turn.status.layout or LayoutStatus(), told)
        same = all(getattr(before, name) == size for name, size in layout.items())
        kept = {"sizes": before.sizes, "tuned": before.tuned, "candidates": before.candidates}
        changes["layout"] = before if same else LayoutStatus(**layout, **kept)
    known = turn.status.checkpoint or CheckpointStatus()
    durable = told.durable_step if told.durable_step is not None else known.durable_step
    now = CheckpointStatus(durable_step=durable, memory_step=told.memory_step, protection=told.protection,
                           memory_skipped=told.memory_skipped)
    if now != known:  # copies in memory may be gone
        changes["checkpoint"] = now
    return turn.note(**changes)


def _unprotected(turn: Turn) -> Turn:
    """After a fault nobody knows whether what was lost has its copies again, until the new ranks say so."""
    known = turn.status.checkpoint
    if known is None or known.protection in (None, "Unprotected") or not holds(turn.status, "Recovering"):
        return turn
    return turn.note(checkpoint=known.model_copy(update={"protection": "Unprotected"}))


def without_memory(turn: Turn) -> Turn:
    """The status of a job without pods: copies in memory went with them."""
    known = turn.status.checkpoint
    gone = dict.fromkeys(("memory_step", "protection", "memory_skipped"))
    if known is None or all(getattr(known, name) is None for name in gone):
        return turn
    return turn.note(checkpoint=known.model_copy(update=gone))


def _made(turn: Turn, told: RankProgress) -> Progress:
    """`updated` moves with the step alone: it is also the clock of the hang policy. So does the speed, which alone is
    not worth a write."""
    before = turn.status.progress
    same = before is not None and before.step == told.step and before.updated is not None
    if same and before is not None:
        speed = before.tokens_per_second if before.tokens_per_second is not None else told.tokens_per_second
        kept = {"updated": before.updated, "eta": before.eta, "tokens_per_second": speed}
    else:
        kept = {"updated": stamp(turn.now), "eta": _eta(turn, told), "tokens_per_second": told.tokens_per_second}
    percent = min(100, told.step * 100 // told.steps) if told.steps else None
    return Progress(
        step=told.step, steps=told.steps, percent=percent, loss=told.loss, evaluation_loss=told.evaluation_loss,
        expert_imbalance=told.expert_imbalance, activity=told.activity, **kept
    )  # fmt: skip


def _eta(turn: Turn, told: RankProgress) -> str | None:
    pace = seconds_per_step(turn) or _observed(turn, told)
    if pace is None or told.steps is None:
        return None
    left = max(0, told.steps - told.step) * pace
    return stamp(turn.now + timedelta(seconds=left)) if left < LONGEST.total_seconds() else None


def _observed(turn: Turn, told: RankProgress) -> float | None:
    """Seconds a step since this operator last noted one."""
    before = turn.status.progress
    since = moment(before.updated) if before else None
    if before is None or since is None or told.step <= before.step:
        return None
    return max(0.0, seconds_between(since, turn.now)) / (told.step - before.step)
