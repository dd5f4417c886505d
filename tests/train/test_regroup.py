"""Two supervisors with ranks of the shipped trainer: those that survive keep their process, and training is exact."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from train.gang import IMPORTS, LOSS, train
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, children_of, wait_for

pytest.importorskip("torch")
Start = Callable[..., SupervisedPod]
STEPS = 60
TRAIN = """
import os, runpy, sys, time
from trainer.data import batches
take = batches.Batches.take
def slow(self, numbers):
    while os.path.exists(os.environ["STUCK"]) and os.environ["RANK"] == "0":
        open(os.environ["STUCK"] + "-here", "w").close()
        time.sleep(0.01)
    time.sleep(0.02)
    return take(self, numbers)
batches.Batches.take = slow
sys.argv = ["trainer"]
runpy.run_module("trainer", run_name="__main__")
"""


class Job:
    """Two pods of one rank with copies in memory, and an operator that this test plays."""

    def __init__(self, start: Start, api: FakeApi, folder: Path, config: dict[str, Any], memory: list[str],
                 **environment: str) -> None:
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "train.py").write_text(TRAIN)
        self.api, self.stuck, self.generation = api, folder / "stuck", 1
        own = {"TRAINYARD_TRAIN_CONFIG": str(folder / "config.json"), "STUCK": str(self.stuck), "PYTHONPATH": IMPORTS,
               "TRAINYARD_SURVIVORS": "regroup",
               "TRAINYARD_PRELOAD": "trainer.preload:warm_up", "TRAINYARD_MEMORY_EVERY": "1",
               "TRAINYARD_MEMORY_COPY_EVERY": "1", **environment}
        self.operator = Operator(api, size=2)
        self.pods = [start([sys.executable, str(folder / "train.py")], index=index, nodes=2,
                           command=[sys.executable, "-m", "supervisor"], TRAINYARD_MEMORY=memory[index],
                           TRAINYARD_NODE=f"node-{index}", **own) for index in (0, 1)]
        self.operator.run(self.pods[0])

    def reaches(self, step: int) -> None:
        """Step, in this generation, with copies of it or a later one everywhere."""
        self.api.wait_report(lambda _, spec: spec["generation"] == self.generation
                             and spec.get("progress", {}).get("memoryStep", 0) >= step, timeout=120)

    def pid(self, index: int) -> int:
        """Of the rank in this pod."""
        for child in children_of(self.pods[index].process.pid):
            if Path(f"/proc/{child}/comm").read_text().strip() == f"rank {index}":
                return child
        raise AssertionError(f"no rank {index}: {self.output()}")

    def output(self) -> str:
        return "".join(pod.output() for pod in self.pods)

    def kill(self, index: int) -> None:
        """A rank dies, and the operator begins another generation."""
        os.kill(self.pid(index), signal.SIGKILL)
        self.operator.report("RankFailed", self.generation)
        self.generation += 1
        self.operator.put(generation=self.generation, cause={"total": self.generation - 1})

    def ends(self) -> dict[int, set[str]]:
        """Losses by step, of all generations."""
        self.operator.report("Finished", self.generation, timeout=120)
        self.operator.put(phase="Done")
        assert [pod.wait() for pod in self.pods] == [0, 0], self.output()
        losses: dict[int, set[str]] = {}
        said = "\n".join(re.findall(r"^\[rank 0\] (.*)$", self.output(), re.MULTILINE))
        for step, loss, _ in LOSS.findall(said):
            losses.setdefault(int(step), set()).add(loss)
        return losses


@pytest.fixture
def memory() -> Iterator[list[str]]:
    folders = [tempfile.mkdtemp(prefix="trainyard-test-", dir="/dev/shm") for _ in range(2)]
    yield folders
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def known() -> dict[str, dict[int, set[str]]]:
    """Losses of the run that nobody disturbs, made by the first test that asks."""
    return {}


@pytest.fixture
def undisturbed(tmp_path: Path, config: dict[str, Any], known: dict[str, dict[int, set[str]]]) -> dict[int, set[str]]:
    config.update(steps=STEPS, export=False)
    if not known:
        ended = train(tmp_path / "undisturbed", config)
        assert ended.codes == [0, 0], ended.text
        known["losses"] = {step: {loss} for step, loss in ended.losses.items()}
    return known["losses"]


@pytest.mark.timeout(300)
def test_ranks_that_survive_keep_their_process_and_train_exactly(
        start: Start, api: FakeApi, tmp_path: Path, config: dict[str, Any], memory: list[str],
        undisturbed: dict[int, set[str]]) -> None:
    """The same one twice, then one that was itself forked after a loss; at the end no step was lost or differs."""
    job = Job(start, api, tmp_path, config, memory)
    for number, (victim, survivor) in enumerate([(1, 0), (1, 0), (0, 1)]):
        job.reaches(8 + 12 * number)
        if victim == 0:  # between two steps: else its last may be copied and not printed
            job.stuck.touch()
            wait_for(job.stuck.with_name("stuck-here").exists, 30, job.output)
        lives, dies = job.pid(survivor), job.pid(victim)
        job.kill(victim)
        job.stuck.unlink(missing_ok=True)
        job.reaches(12 + 12 * number)
        assert job.pid(survivor) == lives, job.output()
        assert job.pid(victim) != dies
    assert job.ends() == undisturbed
    assert job.output().count("the ranks are kept") == 3
    assert job.output().count("from copies in memory") == 3


@pytest.mark.timeout(300)
def test_a_rank_that_does_not_leave_in_time_is_started_anew(
        start: Start, api: FakeApi, tmp_path: Path, config: dict[str, Any], memory: list[str],
        undisturbed: dict[int, set[str]]) -> None:
    job = Job(start, api, tmp_path, config, memory)
    job.reaches(8)
    survivor = job.pid(0)
    job.stuck.touch()  # rank 0 works on and on before its next collective
    wait_for(job.stuck.with_name("stuck-here").exists, 30, job.output)
    job.kill(1)
    wait_for(lambda: "have not left their groups" in job.output(), 30, job.output)
    job.stuck.unlink()
    job.reaches(12)
    assert job.pid(0) != survivor
    assert job.ends() == undisturbed
