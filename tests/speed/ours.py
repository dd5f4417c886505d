"""The trainer as a contender: its own program, whose loop takes turns."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from trainer import config as configs
from trainer import pretrain
from trainer.data.batches import Batches
from trainer.loop import Loop, Totals
from trainer.parallel.model import MicroBatch
from trainer.regroup import Regroup

from speed import ceiling
from speed.cases import BATCH, LOG_EVERY, MODEL, SEQUENCE
from speed.turns import Turns, told

TURNS = Turns()


class Turned(Loop):
    """Waits for its turn before a step."""

    def run(self) -> bool:
        """As ever, but it can be asked for some things between steps."""
        TURNS.answers["ceiling"] = lambda: ceiling.seconds(told()["precision"])
        TURNS.answers["stall"] = self.stall
        return super().run()

    def train_step(self, rate: float) -> Totals:
        """One step of a turn."""
        TURNS.boundary()
        return super().train_step(rate)

    def take(self, batches: Batches, first: int, micro: int) -> MicroBatch:
        """Timed: nothing else goes on meanwhile."""
        started = time.perf_counter()
        found = super().take(batches, first, micro)
        TURNS.waited += time.perf_counter() - started
        return found

    def stall(self) -> float:
        """Seconds that training stands still for a checkpoint, the second one: the first allocates."""
        self.save()
        assert self.saver is not None
        self.saver.wait()
        started = time.perf_counter()
        self.save()
        stalled = time.perf_counter() - started
        self.saver.wait()
        return stalled


def train_config(case: dict[str, Any]) -> dict[str, Any]:
    """The TrainConfig of a case."""
    return {
        "model": {"config": MODEL}, "steps": 1_000_000,
        "data": {"sources": [{"path": case["data"], "format": "prepared"}], "sequenceLength": SEQUENCE},
        "batchSize": BATCH * case["share"], "microBatchSize": BATCH, "precision": case["precision"],
        "optimizer": {"learningRate": 1e-4, "warmupSteps": 10}, "logEvery": LOG_EVERY, "export": False,
        **case.get("train", {}),
    }  # fmt: skip


def main() -> None:
    """Train until the end of the last turn."""
    case = told()
    file = Path(case["folder"]) / f"train-{os.environ['RANK']}.json"
    file.write_text(json.dumps(train_config(case)))
    os.environ["TRAINYARD_TRAIN_CONFIG"] = str(file)
    if (cores := os.environ.get("SPEED_CORE")) is not None:
        os.sched_setaffinity(0, {int(cores)})
    config, run = configs.load([], os.environ)
    program: Any = pretrain
    program.Loop = Turned
    program.pretrain(config, run, Regroup(None))


if __name__ == "__main__":
    main()
