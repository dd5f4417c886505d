"""What one rank is told: `TrainConfig` from a file, its place in the gang and its paths from the environment."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from trainyard.api.train import TrainConfig
from trainyard.layout import autotune
from trainyard.layout.autotune import Candidate

from trainer import planned
from trainer.errors import ConfigError
from trainer.parallel.layout import Layout, check_micro_batches, complete, overlapping, whole_rounds

ASKED = "asked.json"  # beside the configuration of a job: the same as the manifest has it
CANDIDATES = "candidates.json"  # likewise: layouts that are measured before one is chosen
FINISHED = "TRAINYARD_FINISHED_STEP"


@dataclass(frozen=True)
class Rank:
    """A process's place in the gang."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


@dataclass(frozen=True)
class MemoryWish:
    """What the job asks for in checkpoint.memory; None stands for auto."""

    folder: Path
    copies: int | None
    every: int | None
    copy_every: int | None

    @property
    def explicit(self) -> bool:
        """Whether somebody would miss them."""
        return self.copies is not None or self.every is not None or self.copy_every is not None


@dataclass(frozen=True)
class Run:
    """Everything outside `spec.train` that a rank goes by."""

    rank: Rank
    checkpoint: Path | None  # folder of the job's checkpoints; None: nothing is kept
    every: int  # steps between two checkpoints
    keep: int  # checkpoints that stay
    generation: str | None  # "3" or "3.1"; None: nobody counts generations, the checkpoint folder decides
    progress: Path | None
    drain: Path | None
    memory: MemoryWish | None = None  # copies in memory
    pulse: Path | None = None  # the file in which this rank says what it does
    replace_stragglers: bool = False
    inject: str = ""  # faults on demand, see inject.py
    candidates: tuple[Candidate, ...] = ()  # what train.autotune chooses from, for the full gang
    tuned: str = ""  # name of the one that was chosen, as the operator remembers it
    resized: bool = False  # the gang has another size than the operator planned for
    finished: int | None = None  # step that this pod's ranks of an earlier generation had finished, if there were any

    def told_to_drain(self) -> bool:
        """Is this rank to save and stop?"""
        return self.drain is not None and self.drain.exists()


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[TrainConfig, Run]:
    """Configuration from `--config` or $TRAINYARD_TRAIN_CONFIG, and the rank's environment.

    Raises ConfigError."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="One rank of a training run.")
    parser.add_argument("--config", help="TrainConfig as YAML or JSON, or a TrainingJob manifest with spec.train")
    parser.add_argument("--checkpoint", help="folder of the checkpoints (default: $TRAINYARD_CHECKPOINT)")
    parser.add_argument("--checkpoint-every", type=int, help="steps between two checkpoints (default: 100)")
    parser.add_argument("--checkpoint-keep", type=int, help="checkpoints that stay (default: 3)")
    given = parser.parse_args(arguments)
    path = given.config or environment.get("TRAINYARD_TRAIN_CONFIG")
    if not path:
        raise ConfigError("no configuration: give --config FILE or set TRAINYARD_TRAIN_CONFIG")
    folder = given.checkpoint or environment.get("TRAINYARD_CHECKPOINT")
    run = Run(
        rank=rank_of(environment),
        checkpoint=Path(folder) if folder else None,
        every=given.checkpoint_every or _whole(environment, "TRAINYARD_CHECKPOINT_EVERY", 100),
        keep=given.checkpoint_keep or _whole(environment, "TRAINYARD_CHECKPOINT_KEEP", 3),
        generation=environment.get("TRAINYARD_GENERATION"),
        progress=_path(environment, "TRAINYARD_PROGRESS"),
        drain=_path(environment, "TRAINYARD_DRAIN"),
        memory=_memory(environment),
        pulse=_path(environment, "TRAINYARD_PULSE"),
        replace_stragglers=environment.get("TRAINYARD_STRAGGLERS") == "Replace",
        inject=environment.get("TRAINYARD_INJECT", ""),
        tuned=environment.get("TRAINYARD_TUNED", ""),
        finished=_whole(environment, FINISHED, 0) if environment.get(FINISHED) else None,
    )
    train = read(Path(path))
    ranks, per_node = run.rank.world_size, run.rank.local_world_size
    candidates = _candidates(train, Path(path).with_name(CANDIDATES))
    asked = Path(path).with_name(ASKED)
    if asked.exists() and not planned.is_settled(train, ranks):  # the gang has another size than planned
        chosen = next((each.train for each in candidates if each.name == run.tuned), train)
        train, run = planned.resized(chosen, ranks) or read(asked), replace(run, resized=True)
    if train.autotune and not candidates:
        train, candidates = planned.plan_all(train, ranks, per_node)
    else:
        train = planned.plan(train, ranks, per_node)
    return train, replace(run, candidates=candidates)


def _candidates(train: TrainConfig, path: Path) -> tuple[Candidate, ...]:
    """What the operator has planned to be measured."""
    if not path.exists():
        return ()
    try:
        return autotune.read(train, json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} should hold layouts to measure: {error}") from None


def read(path: Path) -> TrainConfig:
    """The TrainConfig in a YAML or JSON file. Raises ConfigError that names every wrong field."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    try:
        content = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if isinstance(content, dict) and content.get("kind") == "TrainingJob":
        content = (content.get("spec") or {}).get("train")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} should hold the fields of spec.train, found {type(content).__name__}")
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from None


def _yaml(text: str) -> Any:
    import yaml  # only people's own files are YAML; a job's is JSON

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _explain(item: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
    return f"train{where}: {item['msg']}{found}"


def rank_of(environment: Mapping[str, str]) -> Rank:
    """The rank as torchrun and Trainyard's supervisor describe it; without them a gang of one."""
    if "RANK" not in environment:
        return Rank(0, 0, 1, 1)
    world = _whole(environment, "WORLD_SIZE", 1)
    return Rank(_whole(environment, "RANK", 0), _whole(environment, "LOCAL_RANK", 0), world,
                _whole(environment, "LOCAL_WORLD_SIZE", world))


def rendezvous_defaults() -> None:
    """Complete the environment that torch.distributed reads when nobody started us as one of a gang."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))


def layout(config: TrainConfig, world_size: int) -> Layout:
    """The layout that was asked for, completed. Raises ConfigError if it does not fit the number of ranks or the
    activation checkpointing, or has nothing to overlap."""
    found = complete(config.parallel, world_size)
    if config.parallel.schedule is None and found.schedule == "Interleaved1F1B":
        found = _one_that_works(config, found)
    if found.schedule == "ZBV" and config.activation_checkpointing == "selective":
        raise ConfigError("train.activationCheckpointing should be none or full with schedule ZBV, found selective: "
                          "ZBV goes backward through a block twice, for its input and for its weights")
    return overlapping(found, config.micro_batch_size) if config.two_batch_overlap else found


def _one_that_works(config: TrainConfig, interleaved: Layout) -> Layout:
    """With ZBV, if that is the only schedule of stageLayers that can run; else as it is."""
    other = replace(interleaved, schedule="ZBV")
    if (len(other.stage_layers) != 2 * other.pipeline or other.zero == 3 or config.two_batch_overlap
            or config.activation_checkpointing == "selective" or _runs(config, interleaved)
            or not _runs(config, other)):
        return interleaved
    return other


def _runs(config: TrainConfig, layout: Layout) -> bool:
    """Does the schedule run with the micro-batches it gets?"""
    try:
        batch_size(config, layout)
    except ConfigError:
        return False
    return True


def batch_size(config: TrainConfig, layout: Layout, resized: bool = False) -> int:
    """Samples an optimizer step. Raises ConfigError if a pipeline gets too few micro-batches, or its schedule no whole
    rounds of them: a gang that is `resized` fills them up."""
    unit = config.micro_batch_size * layout.batch_ranks
    least = 2 * layout.pipeline if layout.schedule == "ZBV" else layout.pipeline
    batch = config.batch_size if config.batch_size is not None else unit * least
    rounds, missing = divmod(batch, unit)
    check_micro_batches(layout, micro_batches(config, layout, batch) if resized or missing else rounds)
    return batch


def micro_batches(config: TrainConfig, layout: Layout, batch: int) -> int:
    """Micro-batches a rank computes for a batch of so many samples: as many as every other rank. A gang that is smaller
    than its batch was made for has some that are padding, in part or whole."""
    count = -(-batch // (config.micro_batch_size * layout.batch_ranks))
    if layout.schedule == "Interleaved1F1B":
        count = max(count, layout.pipeline)
        while not whole_rounds(layout, count):  # ends at a multiple of the ranks at the latest
            count += 1
    return count


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"{name} should be a whole number, found {text!r}")
    return int(text)


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name)
    return Path(text) if text else None


def _memory(environment: Mapping[str, str]) -> MemoryWish | None:
    """None without $TRAINYARD_MEMORY."""
    folder = environment.get("TRAINYARD_MEMORY")
    if not folder:
        return None
    numbers = []
    for name in ("COPIES", "EVERY", "COPY_EVERY"):
        text = environment.get(f"TRAINYARD_MEMORY_{name}") or "auto"
        if text != "auto" and not text.isdecimal():
            raise ConfigError(f"TRAINYARD_MEMORY_{name} should be auto or a whole number, found {text!r}")
        numbers.append(None if text == "auto" else int(text))
    return MemoryWish(Path(folder), *numbers)
