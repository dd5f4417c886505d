"""A checkpoint folder without room: training goes on, the older checkpoint stays valid, saving is tried again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.gang import Gang
from trainer.checkpoint import folder as folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True,
                             text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system can only be mounted by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=100_000, export=False)
    checkpoint = small_disk / "ck"
    filler = small_disk / "filler"
    with Gang(tmp_path / "run", [config] * 2, checkpoint=checkpoint, every=5, keep=1) as gang:
        first = gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 5)["durableStep"]
        with contextlib.suppress(OSError):  # what fits is written, if the next save has begun
            filler.write_bytes(b"x" * (5 << 20))
        failed = gang.wait_for(lambda progress: any(entry["reason"] == "CheckpointFailed"
                                                    for entry in progress["warnings"]))
        message = failed["warnings"][0]["message"]
        assert "No space left on device" in message
        kept = [found for found in folders.scan(checkpoint) if found.marker is not None]
        assert kept
        assert kept[0].step >= first
        assert kept[0].marker is not None
        assert folders.verify(kept[0].path, kept[0].marker.files) is None
        gang.wait_for(lambda progress: progress["step"] >= failed["step"] + 10)  # training goes on
        filler.unlink()
        again = gang.wait_for(lambda progress: progress["durableStep"] > failed["durableStep"])
        gang.drain.touch()
        ended = gang.wait()
        last = gang.progress()["durableStep"]
    assert ended.codes == [75, 75], ended.text
    assert last >= again["durableStep"]
    whole = folders.scan(checkpoint)
    assert [(found.step, found.problem) for found in whole] == [(last, "")], ended.text  # no partial folder is left


def test_a_rank_whose_pulse_finds_no_room_trains_without(small_disk: Path) -> None:
    with contextlib.suppress(OSError):  # what fits is written
        (small_disk / "filler").write_bytes(b"x" * (9 << 20))
    code = ("import sys; from pathlib import Path; from trainer.pulse import Pulse; "
            "Pulse(Path(sys.argv[1])).stepped(1, 0.1); print('stepped')")
    ended = subprocess.run([sys.executable, "-c", code, str(small_disk / "pulse")], capture_output=True, text=True,
                           check=False)
    assert ended.returncode == 0, ended.stderr
    assert "hangs of this rank will not be noticed" in ended.stdout
    assert "stepped" in ended.stdout
