"""A slot says what it holds, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from supervisor.copies.slot import Damaged, Slot

HEADER = {"world": 2, "rank": 1, "tensors": []}
SEAL: dict[str, Any] = {"step": 5, "run": "3", "number": 17, "training": {"samples": 40}}


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    made = Slot.create(str(tmp_path / "1.0"), HEADER, 1000)
    made.data[:4] = b"abcd"
    return made


def test_what_was_sealed_is_read_by_another_process(slot: Slot) -> None:
    assert Slot.open(slot.path).seal() is None
    slot.set_seal(SEAL)
    other = Slot.open(slot.path)
    assert (other.header, other.seal(), bytes(other.data[:4]), len(other.data)) == (HEADER, SEAL, b"abcd", 1000)
    slot.break_seal()
    assert other.seal() is None
    assert "not whole" in other.check()


def test_a_flipped_bit_is_found_once_the_sum_is_known(slot: Slot) -> None:
    slot.set_seal(SEAL)
    slot.note_sum(SEAL["number"], slot.compute_sum())
    assert slot.check() == ""
    slot.data[700] ^= 1
    assert "damaged" in slot.check()


def test_no_bit_of_a_whole_copy_flips_unseen(slot: Slot) -> None:
    """Whichever it is: the copy is refused, or not whole, or damaged, or it does not matter."""
    slot.set_seal(SEAL)
    slot.note_sum(SEAL["number"], slot.compute_sum())
    raw = Path(slot.path).read_bytes()
    flips = [8 * at + bit for at in range(200) for bit in (0, 5)]  # all that is fixed, and the header
    flips += [8 * (at + 8) for at in (4096, 4100, 4200, len(raw) - 9, len(raw) - 1000)]
    for flip in flips:
        other = bytearray(raw)
        other[flip // 8] ^= 1 << flip % 8
        path = Path(slot.path).with_name("1.1")
        path.write_bytes(other)
        try:
            found = Slot.open(str(path))
        except Damaged:
            continue
        if not found.check():
            assert (found.header, found.seal(), bytes(found.data)) == (HEADER, SEAL, bytes(slot.data)), flip
        found.close()


def test_a_sum_is_of_one_content_only(slot: Slot) -> None:
    slot.set_seal(SEAL)
    slot.note_sum(SEAL["number"], 123)
    slot.set_seal({**SEAL, "number": 18})
    assert slot.known_sum() is None
    assert slot.check() == ""


def test_a_content_has_a_number_while_it_is_whole(slot: Slot) -> None:
    assert slot.number() is None
    slot.set_seal(SEAL)
    assert slot.number() == 17


def test_a_torn_seal_is_none(slot: Slot) -> None:
    slot.set_seal(SEAL)
    raw = bytearray(Path(slot.path).read_bytes())
    raw[raw.index(b'"step"') + 8] ^= 1
    Path(slot.path).write_bytes(raw)
    assert Slot.open(slot.path).seal() is None


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"TYCOPY02" + b"\xff" * 200])
def test_what_is_no_slot_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1.0"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        Slot.open(str(path))


def test_a_seal_too_long_is_refused(slot: Slot) -> None:
    with pytest.raises(ValueError, match="at most"):
        slot.set_seal({**SEAL, "training": {"x": "y" * 70_000}})


def test_a_new_slot_takes_its_memory_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Slot.create(str(tmp_path / "1.0"), HEADER, 1 << 55)
    assert list(tmp_path.iterdir()) == []
