"""How a program is told to save and stop: by the file, and by SIGTERM if it catches that."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from supervisor import draining, pulse
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod

PYTHON = "/usr/bin/python3"
CATCHES = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
KNOWS_NOTHING = "import time; print('up', flush=True); time.sleep(99)"


@contextmanager
def running(code: str) -> Iterator[int]:
    """A Python program's pid, once it is up."""
    with subprocess.Popen([PYTHON, "-S", "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(("code", "wanted"), [
    (CATCHES, {"auto": True, "signal": True, "file": False}),
    (IGNORES, {"auto": False, "signal": True, "file": False}),
    (KNOWS_NOTHING, {"auto": False, "signal": True, "file": False}),
], ids=["catches", "ignores", "knows nothing"])
def test_who_gets_sigterm_together_with_the_file(tmp_path: Path, code: str, wanted: dict[str, bool]) -> None:
    file = tmp_path / "pulse"
    with running(code) as pid:
        assert {how: draining.by_signal(how, "torch", pid, str(file)) for how in wanted} == wanted
        assert not draining.by_signal("auto", "mindspore", pid, str(file))
        file.write_bytes(pulse.HEADER.pack(pulse.MAGIC, 0, 0, 0, 0, 0, 1.0, 0.0).ljust(pulse.SIZE, b"\0"))
        assert not draining.by_signal("auto", "torch", pid, str(file)), "the shipped trainer"
    assert not draining.by_signal("auto", "torch", pid, str(tmp_path / "none")), "it has ended"


def test_ranks_of_all_pods_save_when_one_pod_is_told_to_end(start: Callable[..., SupervisedPod], api: FakeApi) -> None:
    """Long before drainSeconds; and exit code 0 is no success then."""
    operator = Operator(api, size=2, drainSeconds=600)
    pods = [start([PYTHON, "-S", "-c", CATCHES], index=index, nodes=2, ranks=2) for index in (0, 1)]
    operator.run(pods[0])
    for pod in pods:
        pod.wait_output("up\n")
    operator.report("Formed")
    for rank in (0, 1):
        pods[0].wait_output(f"[rank {rank}] up")
        pods[1].wait_output(f"[rank {2 + rank}] up")
    pods[1].terminate()
    operator.report("Stopping")
    operator.put(phase="Drain")
    operator.report("Drained")
    for index, pod in enumerate(pods):
        for rank in (0, 1):
            pod.wait_output(f"[rank {2 * index + rank}] saved")
    assert pods[1].wait() == 143
    assert not [spec for _, _, spec in api.reports if spec["kind"] in ("RankFailed", "Finished")]


def test_a_program_that_says_so_is_left_to_the_file(start: Callable[..., SupervisedPod], api: FakeApi) -> None:
    operator = Operator(api, drainSeconds=600)
    code = CATCHES.replace("while True:", "import os\nwhile not os.path.exists(os.environ['TRAINYARD_DRAIN']):")
    pod = start([PYTHON, "-S", "-c", f"{code}time.sleep(0.5)\nsys.exit(75)"], TRAINYARD_DRAIN_BY="file")
    operator.run(pod)
    pod.wait_output("[rank 0] up")
    operator.put(phase="Drain")
    operator.report("Drained")
    assert "saved\n" not in pod.output()


def test_a_way_that_is_none(start: Callable[..., SupervisedPod]) -> None:
    pod = start(["true"], TRAINYARD_DRAIN_BY="both")
    assert pod.wait() == 78
    assert "TRAINYARD_DRAIN_BY is 'both', expected one of auto, file, signal" in pod.output()
