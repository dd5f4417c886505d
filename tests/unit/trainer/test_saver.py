"""Saves that copiers write, as the ranks see them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer.checkpoint.folder import Marker
from trainer.checkpoint.pinned import Pinned
from trainer.checkpoint.saver import NotWritten, Saver, State
from trainer.distributed import Gang


class Copiers:
    """Stands for Pinned: says what it was asked for, and fails if told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def pin(self, step: int, training: dict[str, Any]) -> tuple[int, int]:
        self.asked.append(f"pin {step}")
        return 0, step

    def write(self, path: Path, marker: Marker, state: State, pinned: tuple[int, int]) -> None:
        self.asked.append(f"write {path.name}")
        path.mkdir(exist_ok=True)
        if self.fails is not None:
            raise self.fails

    def go_on(self, pending: dict[str, Any]) -> None:
        self.asked.append(f"go on {pending['step']}")

    def let_go(self, pending: dict[str, Any]) -> None:
        self.asked.append(f"let go {pending['step']}")


@pytest.fixture
def copiers() -> Copiers:
    return Copiers()


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def saver(tmp_path: Path, copiers: Copiers, told: list[Any]) -> Saver:
    gang = Gang(0, 1, 0, torch.device("cpu"), None, None)
    made = Saver(tmp_path, gang, "2", 3, {}, told.append, lambda step, why: told.append((step, why)))
    made.pinned = copiers  # type: ignore[assignment]
    return made


def state() -> State:
    return {"model": {"a": torch.ones(3)}}


def save(saver: Saver, step: int) -> None:
    saver.start(step, state(), {})
    saver.wait()


def test_ranks_make_no_copy_of_their_own(saver: Saver, copiers: Copiers, told: list[Any]) -> None:
    save(saver, 7)
    assert (copiers.asked, told, saver.saved_step) == (["pin 7", "write step-7.g2"], [7], 7)
    assert not saver._staged


def test_after_copiers_failed_ranks_write_themselves(saver: Saver, copiers: Copiers, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    copiers.fails = NotWritten("the copier was replaced", copiers=True)
    save(saver, 7)
    assert saver.failures == 1
    written: list[int] = []
    monkeypatch.setattr(Saver, "_write", lambda self, path, step, training: written.append(step))
    copiers.fails = None
    save(saver, 8)
    save(saver, 9)
    assert written == [8]
    assert copiers.asked == ["pin 7", "write step-7.g2", "pin 9", "write step-9.g2"]


def test_a_full_disk_is_not_the_copiers_fault(saver: Saver, copiers: Copiers, told: list[Any], tmp_path: Path) -> None:
    copiers.fails = NotWritten("rank 1: No space left on device", copiers=False)
    save(saver, 7)
    save(saver, 8)
    assert copiers.asked[-1] == "write step-8.g2"
    assert told[0] == (7, "rank 1: No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_gang_that_breaks_leaves_the_copiers_at_it(saver: Saver, copiers: Copiers, tmp_path: Path) -> None:
    copiers.fails = RuntimeError("Connection closed by peer")
    save(saver, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-7.g2"]


def test_nobody_waits_for_slow_storage_but_the_saves_own_thread(saver: Saver, told: list[Any],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    saver.pinned = None
    written = threading.Event()
    monkeypatch.setattr(Saver, "_write", lambda self, path, step, training: written.wait(60))
    saver.start(7, state(), {})
    assert saver.busy
    assert (told, saver.saved_step) == ([], None)
    written.set()
    saver.wait()
    assert (told, saver.saved_step) == ([7], 7)


class Slots:
    """Stands for Memory, of a gang of one."""

    def __init__(self, folder: Path) -> None:
        self.gang = Gang(0, 1, 0, torch.device("cpu"), None, None)
        self.folder, self.layout, self.addresses = folder, "0" * 16, ["here"]
        self.asked: list[bool] = []

    def pin(self, step: int, training: dict[str, Any], anew: bool) -> tuple[int, int]:
        self.asked.append(anew)
        return 0, step

    def unpin(self) -> None:
        pass


class OneRank:
    """Stands for torch.distributed."""

    @staticmethod
    def all_gather_object(everybody: list[Any], mine: Any, group: Any) -> None:
        everybody[:] = [mine]

    @staticmethod
    def broadcast_object_list(objects: list[Any], source: int, group: Any) -> None:
        pass


def test_after_a_save_that_came_to_nothing_the_state_is_copied_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    """The slot may have been what was damaged; at the end of a run there is no later step."""
    slots, verdicts = Slots(tmp_path), iter([("rank 0: 0.1 is damaged", False), ("", False)])
    monkeypatch.setattr("trainer.checkpoint.pinned.dist", OneRank)
    monkeypatch.setattr(Pinned, "_await_part", lambda self, save, order: "")
    monkeypatch.setattr(Pinned, "_await_verdict", lambda self, save, lost: next(verdicts))
    pinned = Pinned(slots)  # type: ignore[arg-type]
    pinned.pin(7, {})
    with pytest.raises(NotWritten, match="is damaged") as raised:
        pinned.go_on({"save": "step-7.g1/1"})
    assert not raised.value.copiers, "the ranks need not write the next one themselves"
    pinned.pin(7, {})
    pinned.go_on({"save": "step-7.g1/2"})
    pinned.pin(9, {})
    assert slots.asked == [False, True, False]


@pytest.mark.parametrize(("saved", "pending", "step", "asked", "newest"), [
    (None, None, 9, [], 0),
    (5, None, 9, [], 5),
    (5, 7, 9, ["go on 7"], 7),
    (7, 7, 9, ["let go 7"], 7),
    (5, 7, 6, ["let go 7"], 5),
])  # fmt: skip
def test_what_the_ranks_before_began(saver: Saver, copiers: Copiers, told: list[Any], tmp_path: Path, saved: int | None,
                                     pending: int | None, step: int, asked: list[str], newest: int) -> None:
    saver.saved_step = saved
    begun = pending and {"step": pending, "folder": str(tmp_path / f"step-{pending}.g1"), "save": "x"}
    assert saver.take_over(copiers, begun or None, step) == newest  # type: ignore[arg-type]
    saver.wait()
    assert copiers.asked == asked
    assert told == ([pending] if newest == pending and asked == ["go on 7"] else [])
