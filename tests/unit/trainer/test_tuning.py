"""What is remembered of layouts that were measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer import tuning
from trainer.config import MemoryWish, Rank, Run
from trainer.tuning import Record
from trainyard.layout.autotune import Measured

NAMES = ("a", "b", "c")
TUNED = Record(NAMES).begun().chosen([Measured("a", 1.5), Measured("b", None, "no memory")], "a")


def run(folder: Path, rank: int = 0, local: int = 0, **fields: Any) -> Run:
    memory = MemoryWish(folder / f"memory-{rank - local}", None, None, None)
    return Run(Rank(rank, local, 4, 2), folder / "ck", 10, 3, "1", None, None, memory, **fields)


def test_ends_count_for_what_was_measured() -> None:
    record = replace(Record(NAMES).begun(), at="b").begun()
    assert (record.starts, record.at, record.left_out()) == (2, "", {})
    record = replace(record, at="b").begun()
    assert record.left_out() == {"b": "the gang ended 2 times while it was measured"}
    told = replace(Record(NAMES).begun(), at="b", problems={"b": "rank 1: MemoryError"}).begun()
    assert told.left_out() == {"b": "rank 1: MemoryError"}
    assert not told.ends
    assert Record(NAMES).begun().begun().ends == {}  # it ended between two layouts


def test_who_keeps_it_and_where(tmp_path: Path) -> None:
    found = [path for rank in range(4) for path in tuning.places(run(tmp_path, rank, rank % 2))]
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "ck/autotune.json", "memory-0/autotune.json", "memory-2/autotune.json"]
    assert tuning.keep(run(tmp_path), TUNED) == ""
    assert tuning.recall(run(tmp_path), NAMES) == TUNED
    (tmp_path / "ck" / tuning.FILE).write_text("{")
    assert tuning.recall(run(tmp_path), NAMES) == TUNED, "the other place has it"
    assert tuning.recall(run(tmp_path, 2), NAMES) == Record(NAMES), "another pod has none"
    assert tuning.recall(run(tmp_path), ("a", "d")) == Record(("a", "d")), "of another plan"
    (tmp_path / "file").write_text("")
    blocked = replace(run(tmp_path), checkpoint=tmp_path / "file")
    assert "cannot remember" in tuning.keep(blocked, TUNED)


def test_the_newest_and_what_the_operator_tells() -> None:
    later = replace(Record(NAMES), starts=3)
    assert tuning.newest([Record(NAMES), TUNED, later], NAMES) == TUNED
    assert tuning.newest([Record(NAMES), later], NAMES) == later
    assert tuning.newest([], NAMES, "b").tuned == "b"
    assert tuning.newest([TUNED], NAMES, "b").tuned == "a"
    assert tuning.newest([], NAMES, "of another plan").tuned == ""
