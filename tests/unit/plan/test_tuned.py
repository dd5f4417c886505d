"""The layout that ranks have measured to be the fastest: in the status, and in every World after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainyard.api.job import LayoutCandidate, LayoutStatus
from unit.plan.builders import NOW, RENDERING, Case, job, rank_failure, world_of

TRAIN = {"command": None, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/d"}]}, "steps": 100,
                                    "autotune": True}}
CANDIDATES = [
    LayoutCandidate(name="one", data=1, shard=4, tensor=1, pipeline=1, context=1, expert=1, seconds_per_step="1"),
    LayoutCandidate(name="two", data=1, shard=2, tensor=2, pipeline=1, context=1, expert=1, seconds_per_step="1.1",
                    explanation="On CPU: tensor 2"),
    LayoutCandidate(name="three", data=4, shard=1, tensor=1, pipeline=1, context=1, expert=1, seconds_per_step="1.2"),
]
PLANNED = LayoutStatus(**CANDIDATES[0].model_dump(exclude={"name", "problem"}), sizes=[3, 4], candidates=CANDIDATES)
TWO = {"data": 1, "shard": 2, "tensor": 2, "pipeline": 1, "context": 1, "expert": 1}
TOLD: dict[str, Any] = {
    **TWO, "step": 1, "steps": 100, "tuned": "two",
    "measured": [{"name": "one", "secondsPerStep": "2.5"}, {"name": "two", "secondsPerStep": "2.0"},
                 {"name": "three", "problem": "rank 1: out of memory"}]}


def started(**fields: Any) -> Case:
    case = job(4, **TRAIN, **fields).but(rendering=replace(RENDERING, layout=PLANNED)).settled().started().settled()
    assert case.snap.status.layout == PLANNED
    return case


def measuring() -> Case:
    return started(minNodes=2).report(0, "Formed", formed_at=NOW.isoformat(), progress={
        "step": 0, "steps": 100, "shard": 4, "activity": "autotune 2/3"})


def test_the_layout_is_told_before_there_are_pods() -> None:
    made = job(4, **TRAIN).but(rendering=replace(RENDERING, layout=PLANNED)).plan()
    assert (made.actions, made.status.layout) == ((), PLANNED)


def test_progress_says_what_is_measured() -> None:
    case = measuring().settled()
    assert case.snap.status.progress is not None
    assert case.snap.status.progress.activity == "autotune 2/3"
    assert case.condition("Running")[2] == "All 4 pods measure layouts (autotune 2/3) in generation 1."
    assert case.after(3 * 1800).settled().world_spec.generation == 1, "each layout may take half an hour"
    assert case.after(4 * 1800 + 1).settled().world_spec.generation == 2


def test_the_choice_is_kept() -> None:
    case = measuring().settled().after(60).formed(**TOLD).settled()
    layout = case.snap.status.layout
    assert layout is not None
    assert (layout.tuned, layout.tensor, layout.seconds_per_step, layout.measured_seconds_per_step) == (
        "two", 2, "1.1", "2.0")
    assert layout.explanation == "On CPU: tensor 2"
    assert layout.sizes == [2, 4], "those of the layout in use"
    assert [(row.measured_seconds_per_step, row.problem) for row in layout.candidates or ()] == [
        ("2.5", None), ("2.0", None), (None, "rank 1: out of memory")]
    assert case.snap.status.progress is not None
    assert case.snap.status.progress.activity is None

    failed = case.report(1, "RankFailed", failure=rank_failure()).plan()
    assert world_of(failed).tuned == "two"
    again = case.report(1, "RankFailed", failure=rank_failure()).settled()
    assert again.snap.status.layout == layout
    lost = again.but(world=None, reports=()).plan()
    assert world_of(lost).tuned == "two", "a World that is made again knows it, too"


def test_a_smaller_gang_keeps_the_table() -> None:
    case = measuring().settled().after(60).formed(**TOLD).settled().after(60)
    smaller = case.formed(**{**TOLD, "step": 9, "shard": 1, "measured": None}).settled().snap.status.layout
    assert smaller is not None
    assert (smaller.shard, smaller.tuned, smaller.measured_seconds_per_step) == (1, "two", None)
    assert len(smaller.candidates or ()) == 3


def test_another_plan_forgets_it() -> None:
    known = LayoutStatus(**CANDIDATES[1].model_dump(exclude={"name", "problem"}), tuned="two", candidates=CANDIDATES)
    fresh = job(4, **TRAIN).status_with(layout=known)
    same = fresh.but(rendering=replace(RENDERING, layout=PLANNED)).settled()
    assert (same.snap.status.layout, same.world_spec.tuned) == (known, "two")
    other = PLANNED.model_copy(update={"candidates": CANDIDATES[:2]})
    new = fresh.but(rendering=replace(RENDERING, layout=other)).settled()
    assert (new.snap.status.layout, new.world_spec.tuned) == (other, "")


def test_where_the_trainer_has_planned() -> None:
    case = job(4, **TRAIN).settled().started().settled().formed(**TOLD).settled()
    layout = case.snap.status.layout
    assert layout is not None
    assert (layout.tuned, layout.tensor, layout.measured_seconds_per_step) == ("two", 2, "2.0")
    assert [row.name for row in layout.candidates or ()] == ["one", "two", "three"]
