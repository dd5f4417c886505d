"""`train.autotune`: which layouts are worth measuring, and which of the measured ones is taken. Pure; the trainer
measures (trainer/autotune.py)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainyard.api.train import TrainConfig
from trainyard.layout.choose import SAME, Ranking, mesh_of, simplicity
from trainyard.layout.problems import InvalidLayout
from trainyard.layout.resolve import settle
from trainyard.layout.types import Estimate, Layout, Workload

MOST = 4  # layouts that are measured
A_MESH = 2  # of them with the same sizes of all dimensions: their micro-batch or recomputation differs
FAR = 2.0  # times the best's estimate: estimates are off by less
TIE = 0.05  # measured times that are so near are equal: the planner's order decides
DECIDED = ("parallel", "batch_size", "micro_batch_size", "activation_checkpointing")


@dataclass(frozen=True)
class Candidate:
    """A layout that may be measured: a configuration in which everything is set."""

    name: str  # a digest of what is set; the same wherever the same layout is chosen from
    words: str  # the layout, for people
    seconds: float  # estimate of a step
    train: TrainConfig

    def dump(self) -> dict[str, Any]:
        """As candidates.json has it: of the configuration only what differs between candidates."""
        return {"words": self.words, "seconds": self.seconds, "train": decided(self.train)}


class Measured(NamedTuple):
    """What became of a candidate."""

    name: str
    seconds: float | None  # a step, the slowest rank's median; None: it failed
    problem: str = ""  # why, if it did


def candidates(ranking: Ranking, legal: Callable[[Layout], bool] = lambda _: True) -> list[Estimate]:
    """The few layouts that might be the fastest: the planner's choice first, then the others by estimated time. All
    fit into memory; all differ by more than 1 % in estimated time, for what the planner cannot tell apart is seldom
    worth a measurement: the simplest stands for them. `legal`: what else is asked of a layout."""
    found = [ranking.best]
    left = [each for each in ranking.fitting if each.seconds.total <= FAR * ranking.best.seconds.total]
    while len(found) < MOST:
        meshes = Counter(mesh_of(each.layout) for each in found)
        left = [each for each in left if legal(each.layout) and meshes[mesh_of(each.layout)] < A_MESH
                and all(_distinct(each, other) for other in found)]  # fmt: skip
        if not left:
            break
        limit = left[0].seconds.total * (1 + SAME)
        found.append(min((each for each in left if each.seconds.total <= limit), key=simplicity))
    return [found[0], *sorted(found[1:], key=lambda each: each.seconds.total)]


def _distinct(one: Estimate, other: Estimate) -> bool:
    low, high = sorted((one.seconds.total, other.seconds.total))
    return high > low * (1 + SAME)


def as_candidates(train: TrainConfig, work: Workload, chosen: Sequence[Estimate]) -> tuple[Candidate, ...]:
    """The configurations of these layouts; none if there is but one, as then nothing is measured."""
    if len(chosen) < 2:
        return ()
    made = [(each, settle(train, work, each.layout)) for each in chosen]
    return tuple(Candidate(name_of(each), str(one.layout), one.seconds.total, each) for one, each in made)


def check(ranking: Ranking) -> None:
    """Raises InvalidLayout if there is nothing that could be chosen by measuring."""
    if len(ranking.estimates) == 1:
        raise InvalidLayout("train.autotune", f"there is nothing to choose, only one layout is legal with what the "
                                              f"manifest sets ({ranking.estimates[0].layout}): leave fields of "
                                              f"parallel, microBatchSize or activationCheckpointing out, or autotune")


def decided(train: TrainConfig) -> dict[str, Any]:
    """Of a configuration the part that a layout decides, in camelCase."""
    told: dict[str, Any] = train.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(DECIDED))
    return told


def name_of(train: TrainConfig) -> str:
    """The name of a layout: 10 hex digits."""
    return hashlib.sha256(json.dumps(decided(train), sort_keys=True).encode()).hexdigest()[:10]


def read(train: TrainConfig, content: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    """The reverse of dump(). `train`: one of them, or any configuration with the same rest. Raises ValueError, KeyError
    or TypeError for what is none."""
    rest = train.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(DECIDED))
    found = []
    for each in content:
        made = TrainConfig.model_validate({**rest, **each["train"]})
        found.append(Candidate(name_of(made), str(each["words"]), float(each["seconds"]), made))
    return tuple(found)


def winner(rows: Sequence[Measured]) -> str | None:
    """Name of the layout that is taken: the fastest; of those within 5 % of it the first in the planner's order, in
    which `rows` are. None if all failed."""
    times = [row.seconds for row in rows if row.seconds is not None]
    if not times:
        return None
    limit = min(times) * (1 + TIE)
    return next(row.name for row in rows if row.seconds is not None and row.seconds <= limit)
