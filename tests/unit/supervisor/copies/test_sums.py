"""Sums of copies while ranks go on writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervisor.copies.keeper import Keeper
from supervisor.copies.slot import Slot
from supervisor.copies.sums import Sums

LAYOUT = "0123456789abcdef"


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(str(tmp_path))


@pytest.fixture
def slot(keeper: Keeper) -> Slot:
    path = Path(keeper.path("own", f"{LAYOUT}/3.1"))
    path.parent.mkdir()
    made = Slot.create(str(path), {"world": 4, "rank": 3, "tensors": []}, 100_000)
    seal(made, 70)
    return made


def seal(slot: Slot, number: int) -> None:
    slot.set_seal({"step": number // 10, "run": "1", "number": number, "training": {}})


def test_it_is_taken_once(keeper: Keeper, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Sums(keeper)
    total = sums.of(slot, 70)
    assert total == slot.compute_sum() == slot.known_sum()
    monkeypatch.setattr(Slot, "compute_sum", None)
    assert sums.of(slot, 70) == total
    assert sums.seconds(LAYOUT, 3) > 0
    assert sums.seconds(LAYOUT, 2) == 0


@pytest.mark.parametrize("number", [69, None])
def test_nothing_is_noted_of_what_is_not_there(keeper: Keeper, slot: Slot, number: int | None) -> None:
    if number is None:
        slot.break_seal()
    assert Sums(keeper).of(slot, number or 70) is None
    seal(slot, 70)
    assert slot.known_sum() is None


def test_what_is_overwritten_meanwhile_is_given_up_and_its_cost_estimated(keeper: Keeper, slot: Slot,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.copies.slot.CHUNK", 10_000)
    monkeypatch.setattr("supervisor.copies.sums.CHUNK", 10_000)
    sums = Sums(keeper)
    clock = iter([0.0, 0.5])
    monkeypatch.setattr("time.thread_time", lambda: next(clock))
    monkeypatch.setattr(Slot, "number", Numbers([70] * 6 + [71] * 9))
    assert sums.of(slot, 70) is None
    assert slot.known_sum() is None
    assert sums.seconds(LAYOUT, 3) == pytest.approx(0.5 * 10 / 5), "five of ten parts took half a second"


class Numbers:
    """What Slot.number() says, one after the other."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self._numbers[self.asked - 1]


def test_one_that_stops_takes_nothing(keeper: Keeper, slot: Slot) -> None:
    assert Sums(keeper).of(slot, 70, lambda: True) is None
    assert slot.known_sum() is None
