"""The layout of a job is chosen before its pods are made, and kept with what they are made from (docs/planner.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainyard.api.job import LayoutCandidate, LayoutStatus, TrainingJobSpec
from trainyard.api.train import TrainConfig
from trainyard.layout import autotune, choose, settle
from trainyard.layout.autotune import Candidate
from trainyard.layout.choose import Ranking
from trainyard.layout.job import of_job
from trainyard.layout.memory import state_bytes
from trainyard.layout.sizes import check_min_nodes, gang_sizes
from trainyard.layout.table import sentence
from trainyard.layout.types import Estimate, Layout, Workload


class Planned(NamedTuple):
    """What is known of a job's layout before its pods are made."""

    train: TrainConfig | None  # what the trainer is told, with everything set that was left open
    layout: LayoutStatus | None  # what the status says about it
    state: float  # bytes of parameters and moments of the fullest rank; 0 where only the trainer will know
    candidates: tuple[Candidate, ...] = ()  # what the trainer measures first


def plan_layout(spec: TrainingJobSpec, device: str = "") -> Planned:
    """Chooses what the manifest leaves open. Where only the files of train.model.path know the model's shape, the
    configuration stays as it is: the trainer plans at its start. `device`: the model that the nodes' agents tell.
    Raises InvalidLayout and LayoutDoesNotFit."""
    work = of_job(spec, model=device)
    if spec.train is None or work is None:
        check_min_nodes(spec, None)
        return Planned(spec.train, None, 0)
    ranking = choose(work)
    best = ranking.best
    status = status_of(work, best)
    check_min_nodes(spec, status)
    if spec.min_nodes is not None:
        status = status.model_copy(update={"sizes": gang_sizes(spec, status)})
    if spec.train.autotune:
        return _tuned(spec, spec.train, ranking, status)
    return Planned(settle(spec.train, work, best.layout), status, state_bytes(work.shape, best.layout))


def _tuned(spec: TrainingJobSpec, train: TrainConfig, ranking: Ranking, status: LayoutStatus) -> Planned:
    """With the few layouts that the trainer is to measure; each could go on with minNodes."""
    autotune.check(ranking)
    work = ranking.work
    chosen = autotune.candidates(ranking, lambda layout: _shrinks(spec, layout))
    made = autotune.as_candidates(train, work, chosen)
    if not made:
        words = f"{status.explanation} Nothing is measured (autotune): no other layout is estimated to be near."
        settled = settle(train.model_copy(update={"autotune": False}), work, chosen[0].layout)
        return Planned(settled, status.model_copy(update={"explanation": words}),
                       state_bytes(work.shape, chosen[0].layout))  # fmt: skip
    rows = [LayoutCandidate(name=each.name, **status_of(work, one).model_dump(exclude_none=True))
            for each, one in zip(made, chosen, strict=True)]  # fmt: skip
    state = max(state_bytes(work.shape, one.layout) for one in chosen)
    return Planned(made[0].train, status.model_copy(update={"candidates": rows}), state, made)


def _shrinks(spec: TrainingJobSpec, layout: Layout) -> bool:
    least = spec.min_nodes or spec.num_nodes
    sizes = LayoutStatus(data=layout.data, shard=layout.shard, tensor=layout.tensor, pipeline=layout.pipeline,
                         context=layout.context, expert=layout.expert)
    return least in gang_sizes(spec, sizes, least)


def status_of(work: Workload, each: Estimate) -> LayoutStatus:
    """A layout and its estimate as a status shows them."""
    layout = each.layout
    return LayoutStatus(
        data=layout.data, shard=layout.shard, tensor=layout.tensor, pipeline=layout.pipeline, context=layout.context,
        expert=layout.expert, memory_per_device=f"{each.memory.total / 2**30:.1f}Gi",
        seconds_per_step=f"{each.seconds.total:.3g}",
        explanation=f"On {work.hardware.name}: {sentence(each)}")  # fmt: skip


def as_written(train: TrainConfig) -> Mapping[str, Any]:
    """The configuration with only what the manifest says, from which another number of ranks is planned for."""
    said: Mapping[str, Any] = train.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return said
