"""What a rank's pulse tells of a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervisor import pulse
from supervisor.hangs import Hangs, Process, read
from supervisor.pulse import Pulse, Rank, Watch


def rank(number: int, since: float, phase: str = "step", steps: int = 9, usual: float = 0.1, state: str = "S") -> Rank:
    return Rank(number, Pulse(phase, 0, steps, 20, since, usual), state)


def verdict(watch: Watch, ranks: list[Rank], now: float) -> object:
    """After looks without a break: a culprit, `all`, or None."""
    at = now - 60
    while at < now:
        watch.look([], at)
        at += 1
    found = [watch.look(ranks, now + look * 0.25) for look in range(4)][-1]
    return None if found is None else "all" if found.culprit is None else found.culprit


@pytest.mark.parametrize(("wanted", "ranks", "expected"), [
    ("auto", [rank(0, 96), rank(1, 96)], None),
    ("auto", [rank(0, 94), rank(1, 94)], "all"),
    ("auto", [rank(0, 94, usual=1), rank(1, 94, usual=1)], None),  # ten usual steps
    ("auto", [rank(0, 89, usual=1), rank(1, 88, usual=1)], "all"),
    ("auto", [rank(0, 60, steps=4), rank(1, 60, steps=4)], None),  # nothing is usual yet
    ("3", [rank(0, 96, steps=4), rank(1, 96, steps=4)], "all"),
    ("auto", [rank(0, 50), rank(1, 50, phase="save")], None),  # one has a reason
    ("auto", [rank(0, 94), rank(1, 94, state="T")], 1),
    ("auto", [rank(0, 94), rank(1, 94, state="D")], 1),
    ("auto", [rank(0, 98), rank(1, 98, state="T")], None),  # not yet
    ("auto", [rank(0, 94), Rank(1, None, "S")], None),  # a program without a pulse
])
def test_verdicts(wanted: str, ranks: list[Rank], expected: object) -> None:
    assert verdict(Watch(wanted), ranks, 100.0) == expected


@pytest.mark.parametrize(("ranks", "expected"), [
    ([rank(0, 97.9), rank(1, 97.8)], True),
    ([rank(0, 98.1), rank(1, 97.9)], False),
    ([rank(0, 97.1, usual=1)], False),
    ([rank(0, 96.9, usual=1)], True),
    ([rank(0, 90, usual=60)], False),  # nothing is said of a long step before it is late
    ([rank(0, 90, steps=4)], False),
    ([rank(0, 90), rank(1, 90, phase="save")], False),
    ([rank(0, 90), Rank(1, None, "S")], False),
    ([], False),
])
def test_a_step_that_takes_far_longer_than_usual(ranks: list[Rank], expected: bool) -> None:
    watch = Watch("auto")
    for at in range(60, 101):
        watch.look([], at)
    assert watch.stalled(ranks, 100.0) is expected
    watch.look([], 200.0)  # the machine slept
    assert not watch.stalled(ranks, 200.0)


def test_time_in_which_nobody_looked_is_nobodys_fault() -> None:
    watch, ranks = Watch("auto"), [rank(0, 100)]
    assert watch.look(ranks, 100.5) is None
    assert watch.look(ranks, 200.0) is None  # the machine slept
    assert all(watch.look(ranks, 200.0 + at) is None for at in range(5))
    assert watch.look(ranks, 205.5) is not None


def test_a_file_that_is_no_pulse(tmp_path: Path) -> None:
    file = tmp_path / "pulse"
    assert read(str(file)) is None
    file.write_bytes(b"x" * pulse.SIZE)
    assert read(str(file)) is None


STUCK = """
import sys, time
from pathlib import Path
from trainer.pulse import Pulse
pulse = Pulse(Path(sys.argv[1]))
def waits_for_ever():
    time.sleep(1000)
for step in range(1, 9):
    pulse.stepped(step, 0.01)
print("here", flush=True)
waits_for_ever()
"""


@pytest.mark.parametrize("stop", [False, True])
def test_a_real_process_that_hangs(tmp_path: Path, stop: bool) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "pulse"
    with subprocess.Popen([sys.executable, "-c", STUCK, str(file)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            told = read(str(file))
            assert told is not None
            assert (told.phase, told.step, told.steps) == ("step", 8, 8)
            if stop:
                os.kill(process.pid, signal.SIGSTOP)
            hangs = Hangs("1")
            found, deadline = None, time.monotonic() + 30
            while found is None and time.monotonic() < deadline:
                time.sleep(max(0.0, hangs.deadline() - time.monotonic()))
                found = hangs.step([Process(3, process.pid, str(file))])
        finally:
            process.kill()
    assert found is not None
    assert found.hang is not None
    assert found.hang.culprit == (3 if stop else None)
    if not stop:
        assert "waits_for_ever" in found.text
