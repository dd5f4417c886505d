"""The layout, where the manifest leaves it open and nobody has planned for this number of ranks: by the planner that
the operator uses (trainyard.layout), on every rank alike. No torch here."""

from __future__ import annotations

import math
from pathlib import Path

from trainyard.api.train import TrainConfig
from trainyard.layout import (
    HARDWARE,
    Hardware,
    InvalidLayout,
    LayoutDoesNotFit,
    Ranking,
    autotune,
    choose,
    of_train,
    settle,
)
from trainyard.layout.autotune import Candidate
from trainyard.layout.hardware import named

from trainer.errors import ConfigError
from trainer.model import shape

SIZES = ("data", "shard", "tensor", "pipeline", "context")


def plan(train: TrainConfig, ranks: int, per_node: int, hardware: Hardware | None = None) -> TrainConfig:
    """The configuration with everything set that was left open; as it is, if nothing was. Raises ConfigError."""
    if is_settled(train, ranks):
        return train
    ranking = _rank(train, ranks, per_node, hardware)
    return settle(train, ranking.work, ranking.best.layout)


def plan_all(train: TrainConfig, ranks: int, per_node: int,
             hardware: Hardware | None = None) -> tuple[TrainConfig, tuple[Candidate, ...]]:
    """Likewise, and the layouts to measure before one is chosen; none if there is only one that may be the fastest.
    Raises ConfigError if everything is set."""
    ranking = _rank(train, ranks, per_node, hardware)
    try:
        autotune.check(ranking)
    except InvalidLayout as error:
        raise ConfigError(str(error)) from None
    found = autotune.as_candidates(train, ranking.work, autotune.candidates(ranking))
    return (found[0].train if found else settle(train, ranking.work, ranking.best.layout)), found


def _rank(train: TrainConfig, ranks: int, per_node: int, hardware: Hardware | None) -> Ranking:
    try:
        work = of_train(train, ranks, per_node, hardware or find_hardware(), shape.fields(train.model))
        assert work is not None
        ranking = choose(work)
        assert ranking.best
        return ranking
    except InvalidLayout as error:
        raise ConfigError(str(error)) from None
    except LayoutDoesNotFit as error:
        raise ConfigError(f"train: {error}") from None


def resized(train: TrainConfig, ranks: int) -> TrainConfig | None:
    """A configuration with everything set, for another number of ranks: only data and shard change, so each rank keeps
    its slices' shapes (and its stages, unless the schedule was left open); the batch stays. None if tensor, pipeline
    and context do not divide the ranks, or if something was left open."""
    sizes = [getattr(train.parallel, name) for name in SIZES]
    if None in sizes or not is_settled(train, math.prod(sizes)):
        return None
    fixed = math.prod(sizes[2:])
    if ranks % fixed:
        return None
    replicas = ranks // fixed
    shard = train.parallel.shard if replicas % (train.parallel.shard or 1) == 0 else replicas
    assert shard is not None
    parallel = train.parallel.model_copy(update={"data": replicas // shard, "shard": shard})
    return train.model_copy(update={"parallel": parallel})


def is_settled(train: TrainConfig, ranks: int) -> bool:
    """Whether nothing is left to choose for this number of ranks."""
    product = 1
    for name in SIZES:
        size = getattr(train.parallel, name)
        if size is None:
            return False
        product *= size
    return product == ranks and train.batch_size is not None and "micro_batch_size" in train.model_fields_set


def find_hardware() -> Hardware:
    """The row of this node's devices, from what their drivers show without a library of theirs. Its memory is not asked
    for: here it is too late to refuse."""
    if Path("/dev/davinci_manager").exists():
        return HARDWARE["910B"]
    for told in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = next((line for line in told.read_text().splitlines() if line.startswith("Model:")), "")
        return named(model.partition(":")[2].strip()) or HARDWARE["A100"]
    return HARDWARE["CPU"]
