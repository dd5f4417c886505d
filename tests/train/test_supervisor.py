"""Two supervisors with real torch ranks on loopback: a killed rank, and the death of the master's store child."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, children_of

pytest.importorskip("torch")
Start = Callable[..., SupervisedPod]

SCRIPT = """
import json, os, time
print("exec", os.environ["TRAINYARD_GENERATION"], os.getpid(), time.time(), flush=True)
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
steps = 8 if os.environ["TRAINYARD_GENERATION"] == "2" else 100000
for step in range(1, steps + 1):
    total = torch.full((), float(dist.get_rank()))
    dist.all_reduce(total)
    assert total.item() == sum(range(dist.get_world_size()))
    if dist.get_rank() == 0:
        with open(os.environ["TRAINYARD_PROGRESS"], "w") as file:
            file.write(json.dumps({"step": step, "steps": steps}))
    time.sleep(0.02)
dist.destroy_process_group()
"""


@pytest.mark.timeout(120)
def test_a_killed_rank_starts_a_generation_that_finishes(start: Start, api: FakeApi, tmp_path: Path) -> None:
    """kill -9 of rank 0, which hosts no store; the master is the other pod. Prints how long it took."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    operator = Operator(api, size=2)
    pods = [start([sys.executable, str(script)], index=index, nodes=2, command=[sys.executable, "-m", "supervisor"])
            for index in (0, 1)]
    operator.run(pods[1])
    api.wait_report(lambda _, spec: spec.get("progress", {}).get("step", 0) >= 3, timeout=60)
    pid = int(re.findall(r"exec 1 (\d+)", pods[0].output())[0])
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    failure = operator.report("RankFailed", 1)["failure"]
    told = time.time()
    assert (failure["root"], failure["rank"], failure["exitCode"]) == (True, 0, -9)
    operator.put(generation=2, cause={"total": 1})
    operator.report("Finished", 2, timeout=60)
    began = [float(at) for pod in pods for at in re.findall(r"exec 2 \d+ ([\d.]+)", pod.output())]
    assert len(began) == 2
    print(f"rank killed -> report at the API {told - killed:.3f} s, -> new ranks run {max(began) - killed:.3f} s")
    late = [spec for _, _, spec in api.reports if spec["kind"] == "RankFailed" and not spec["failure"]["root"]]
    assert not late  # the survivor's consequence was dropped
    operator.put(phase="Done")
    assert [pod.wait() for pod in pods] == [0, 0]


@pytest.mark.timeout(120)
def test_the_death_of_torchs_store_costs_a_generation(start: Start, api: FakeApi, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    operator = Operator(api)
    pod = start([sys.executable, str(script)], command=[sys.executable, "-m", "supervisor"])
    operator.run(pod)
    api.wait_report(lambda _, spec: spec.get("progress", {}).get("step", 0) >= 1, timeout=60)
    rank = int(re.findall(r"exec 1 (\d+)", pod.output())[0])
    (store,) = set(children_of(pod.process.pid)) - {rank}
    os.kill(store, signal.SIGKILL)
    assert "torch's store ended" in operator.report("RankFailed", 1)["failure"]["reason"]
    operator.put(generation=2)
    operator.report("Finished", 2, timeout=60)
    operator.put(phase="Done")
    assert pod.wait() == 0
