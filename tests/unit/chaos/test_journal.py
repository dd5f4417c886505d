"""What a journal makes of the logs of a gang's pods."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from chaos.journal import Journal

NAMESPACE = "chaos-1"


def line(second: float, text: str) -> str:
    return f"2026-11-22T08:00:{second:012.9f}Z stdout F [rank 0] {text}\n"


def at(second: float) -> float:
    return 1795334400 + second  # 2026-11-22T08:00:00Z


FIRST = [line(1, "model: 4.3 million parameters, fp32"), line(2, "step 1/90 loss 10.100000 norm 1.0"),
         line(3, "step 2/90 loss 9.900000 norm 1.0"), line(4, "step 3/90 loss 9.800000 norm 1.0")]  # fmt: skip
SECOND = [line(5.1, "model: 4.3 million parameters, fp32"), line(5.2, "resumed after step 2 from copies in memory"),
          line(5.5, "step 3/90 loss 9.800000 norm 1.0"), line(6, "step 4/90 batch skipped lr 1")]  # fmt: skip


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "node-1", tmp_path / "node-2"]
    for disk in made:
        (disk / "var" / "log" / "pods").mkdir(parents=True)
    return made


def put(disk: Path, pod: str, lines: list[str]) -> Path:
    folder = disk / "var" / "log" / "pods" / f"{NAMESPACE}_{pod}_uid" / "trainer"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "0.log").open("a") as file:
        file.writelines(lines)
    return folder / "0.log"


def wait_step(journal: Journal, step: int) -> None:
    deadline = time.monotonic() + 10
    while journal.step != step:
        assert time.monotonic() < deadline, journal.text()
        time.sleep(0.01)


def test_a_recovery_is_measured_from_the_fault_to_the_first_step_of_the_new_start(disks: list[Path]) -> None:
    put(disks[0], "case-1-0-1", FIRST)
    put(disks[1], "case-1-0-2", SECOND)  # rank 0 has another pod now
    put(disks[1], "case-10-0-1", [line(1, "model: 4.3 million parameters"), line(50, "step 80/90 loss 1.0 norm 1")])
    with Journal(disks, NAMESPACE, "case-1") as journal:
        wait_step(journal, 4)
        step = journal.next_step(at(3.9), restarted=True)
        assert step is not None
        assert (step.number, step.at) == (3, at(5.5)), "step 3 of the first start ended after the fault: it is none"
        assert journal.lost(step) == 1
        assert journal.lost(step, finished=2) == 0  # another rank was still at step 3
        soon = journal.next_step(at(3.9), restarted=False)
        assert soon is not None
        assert soon.at == at(4)
        assert journal.next_step(at(5.15), restarted=True) is None
        assert journal.losses() == {1: "10.100000", 2: "9.900000", 3: "9.800000", 4: "skipped"}


def test_a_deleted_log_is_read_to_its_end_and_half_a_line_waits_for_the_rest(disks: list[Path]) -> None:
    path = put(disks[0], "case-1-0-1", FIRST[:2])
    with Journal(disks, NAMESPACE, "case-1") as journal:
        wait_step(journal, 1)
        with path.open("a") as file:
            file.write(FIRST[2][:40])
            file.flush()
            path.unlink()
            time.sleep(0.1)
            assert journal.step == 1
            file.write(FIRST[2][40:])
        wait_step(journal, 2)


def test_the_first_start_loses_nothing(disks: list[Path]) -> None:
    put(disks[0], "case-1-0-1", FIRST)
    with Journal(disks, NAMESPACE, "case-1") as journal:
        wait_step(journal, 3)
        step = journal.next_step(at(0), restarted=True)
        assert step is not None
        assert journal.lost(step) == 0
