"""Two supervisors with ranks of the shipped trainer: one is stopped, or spins while the others wait for it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train.gang import IMPORTS
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod

pytest.importorskip("torch")
Start = Callable[..., SupervisedPod]
LIMIT = 3  # s; hangSeconds
TRAIN = """
import json, os, sys, threading, time, runpy
print("exec", os.environ["TRAINYARD_GENERATION"], os.getpid(), flush=True)
from trainer.data import batches
take = batches.Batches.take
def spin():
    while True:
        time.sleep(0.01)
def slow(self, numbers):
    if os.environ["RANK"] == "1" and os.path.exists(os.environ["SPIN"]) and os.environ["TRAINYARD_GENERATION"] == "1":
        spin()
    time.sleep(0.02)
    return take(self, numbers)
batches.Batches.take = slow
sys.argv = ["trainer"]
runpy.run_module("trainer", run_name="__main__")
"""


@pytest.fixture
def operator(start: Start, api: FakeApi, tmp_path: Path,
             config: dict[str, Any]) -> tuple[Operator, list[SupervisedPod]]:
    """Two pods of one rank, past the steps after which the usual one is known."""
    config.update(steps=10_000, export=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {"TRAINYARD_TRAIN_CONFIG": str(tmp_path / "config.json"), "TRAINYARD_HANG_SECONDS": str(LIMIT),
                   "SPIN": str(tmp_path / "spin"), "PYTHONPATH": IMPORTS}
    operator = Operator(api, size=2)
    pods = [start([sys.executable, str(tmp_path / "train.py")], index=index, nodes=2,
                  command=[sys.executable, "-m", "supervisor"], **environment) for index in (0, 1)]
    operator.run(pods[0])
    api.wait_report(lambda _, spec: spec.get("progress", {}).get("step", 0) >= 6, timeout=120)
    return operator, pods


def first_step_of(api: FakeApi, generation: int) -> None:
    api.wait_report(lambda _, spec: spec["generation"] == generation and spec.get("progress", {}).get("step", 0) > 0,
                    timeout=120)


@pytest.mark.timeout(300)
def test_a_stopped_rank_is_named_killed_and_started_again(operator: tuple[Operator, list[SupervisedPod]],
                                                          api: FakeApi) -> None:
    told, pods = operator
    pid = int(re.findall(r"exec 1 (\d+)", pods[1].output())[0])
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    failure = told.report("RankFailed", 1, timeout=60)["failure"]
    took = time.monotonic() - stopped
    print(f"SIGSTOP -> report {took:.1f} s with hangSeconds {LIMIT}")
    assert took < LIMIT + 15
    assert (failure["rank"], failure["root"], failure["hang"]) == (1, True, True)
    assert "rank 1 is stopped (SIGSTOP)" in failure["reason"]
    told.put(generation=2, cause={"total": 1})
    first_step_of(api, 2)


@pytest.mark.timeout(300)
def test_who_is_waited_for_shows_in_the_collectives(operator: tuple[Operator, list[SupervisedPod]], api: FakeApi,
                                                    tmp_path: Path) -> None:
    told, _ = operator
    (tmp_path / "spin").touch()
    waiting: dict[int, dict[str, Any]] = {}

    def both(_: str, spec: dict[str, Any]) -> bool:
        if "hang" in spec:
            waiting[spec["index"]] = spec["hang"]
        return len(waiting) == 2

    api.wait_report(both, timeout=60)
    from trainyard.api.protocol import Position
    from trainyard.plan.collectives import behind

    found = behind(Position.model_validate(one) for hang in waiting.values() for one in hang["positions"])
    assert [one.rank for one in found] == [1], waiting
    assert "in spin" in waiting[1]["text"]
    told.put(generation=2, cause={"total": 1})
    first_step_of(api, 2)
