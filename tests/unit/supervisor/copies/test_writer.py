"""Checkpoints that copiers write from slots, without ranks."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.copies import marker
from supervisor.copies.courier import Courier
from supervisor.copies.keeper import Keeper
from supervisor.copies.slot import Slot
from supervisor.copies.sums import Sums
from supervisor.copies.writer import DROPPED, HANDED_IN, LOST, UNKNOWN, Writer

TOKEN = "t" * 32
LAYOUT = "0123456789abcdef"
SAVE = "step-7.g1/1"


class Pod:
    """A copier's writer; ranks ask it directly. `address` is where other pods' writers would find it."""

    def __init__(self, folder: Path, address: str = "here") -> None:
        folder.mkdir()
        self.keeper = Keeper(str(folder))
        self.sums = Sums(self.keeper)
        self.writer = Writer(self.keeper, self.sums, TOKEN, address)

    def fill(self, rank: int, number: int = 70) -> None:
        path = Path(self.keeper.path("own", f"{LAYOUT}/{rank}.0"))
        path.parent.mkdir(exist_ok=True)
        slot = Slot.create(str(path), {"world": 2, "rank": rank, "tensors": []}, 1 << 16)
        slot.data[100:107] = b"rank %2d" % rank
        slot.set_seal({"step": 7, "run": "1", "number": number, "training": {}})
        text = {"text": base64.b64encode(b"before ").decode(), "sums": []}
        form = {"files": {f"__{rank}_0.distcp": [text, [100, 7], {"text": "AAAAAA==", "sums": [0]}]}}
        Path(self.keeper.form(LAYOUT, rank)).write_text(json.dumps(form))

    def save(self, rank: int, folder: Path, head: str = "here", **changed: Any) -> dict[str, Any]:
        order = {"save": SAVE, "layout": LAYOUT, "rank": rank, "slot": 0, "number": 70, "folder": str(folder),
                 "head": head, "step": 7, "generation": "1"}
        if rank == 0:
            order["marker"] = {"step": 7, "worldSize": 2}
        return self.writer.save({**order, **changed})

    def written(self, rank: int) -> dict[str, Any]:
        return self.writer.written({"layout": LAYOUT, "rank": rank, "save": SAVE})


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    made = Pod(tmp_path / "pod")
    made.fill(0)
    made.fill(1)
    return made


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / marker.NAME).read_text())
    assert found.pop("digest") == marker.digest(found)
    return found


def test_the_marker_lists_what_all_ranks_wrote(pod: Pod, tmp_path: Path) -> None:
    folder = tmp_path / "ck" / "step-7.g1"
    pod.save(1, folder)
    assert pod.written(1) == {"state": HANDED_IN, "problem": ""}
    assert not (folder / marker.NAME).exists()
    pod.save(0, folder)
    assert pod.writer.verdict({"save": SAVE}) == {"verdict": ""}
    assert (folder / "__1_0.distcp").read_bytes()[:14] == b"before rank  1"
    assert (folder / "__1_0.distcp").read_bytes()[14:] == zlib.crc32(b"rank  1").to_bytes(4, "little")
    assert content(folder)["files"]["__0_0.distcp"]["bytes"] == 18
    assert sorted(content(folder)["files"]) == ["__0_0.distcp", "__1_0.distcp"]


def test_one_rank_that_cannot_write_fails_all(pod: Pod, tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    pod.save(0, folder)
    pod.save(1, folder, number=71)
    assert "rank 1: " in pod.writer.verdict({"save": SAVE})["verdict"]
    assert "something else by now" in pod.writer.verdict({"save": SAVE})["verdict"]
    assert not (folder / marker.NAME).exists()


def flip(pod: Pod, rank: int) -> None:
    slot = Slot.open(pod.keeper.path("own", f"{LAYOUT}/{rank}.0"), write=True)
    slot.data[103] ^= 2
    slot.close()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_slot_in_which_a_bit_has_flipped_never_becomes_a_checkpoint(pod: Pod, tmp_path: Path, when: str,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    older, folder = tmp_path / "ck" / "step-6.g1", tmp_path / "ck" / "step-7.g1"
    for rank in (0, 1):
        pod.save(rank, older, save="step-6.g1/1")
    assert pod.writer.verdict({"save": "step-6.g1/1"}) == {"verdict": ""}  # the sums are known now
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    if when == "before":
        flip(pod, 1)
    else:
        def after_the_last_byte(path: str) -> None:
            flip(pod, 1)

        monkeypatch.setattr(marker, "sync_folder", after_the_last_byte)
    pod.save(1, folder)
    assert pod.written(1)["state"] == HANDED_IN
    monkeypatch.undo()
    pod.save(0, folder)
    verdict = pod.writer.verdict({"save": SAVE})["verdict"]
    assert verdict.startswith("rank 1: ")
    assert "1.0 is damaged" in verdict
    assert not (folder / marker.NAME).exists()
    assert {path.name: path.read_bytes() for path in older.iterdir()} == before


def test_what_is_written_has_its_sum_from_then_on(pod: Pod, tmp_path: Path) -> None:
    pod.save(0, tmp_path / "ck")
    assert pod.written(0)["state"] == HANDED_IN
    slot = Slot.open(pod.keeper.path("own", f"{LAYOUT}/0.0"))
    assert slot.known_sum() == slot.compute_sum()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], check=True)
    (folder / "filler").write_bytes(b"x" * 4096)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_in_the_systems_words(pod: Pod, full: Path) -> None:
    for rank in (0, 1):
        pod.save(rank, full)
    assert "No space left on device" in pod.writer.verdict({"save": SAVE})["verdict"]


def test_ranks_of_a_later_run_find_it_and_see_it_through(pod: Pod, tmp_path: Path) -> None:
    pod.save(0, tmp_path / "ck")
    found = pod.writer.pending(LAYOUT, 0)
    assert found is not None
    assert (found["save"], found["slot"], found["step"]) == (SAVE, 0, 7)
    assert pod.writer.pending(LAYOUT, 1) is None
    pod.save(1, tmp_path / "ck")
    assert pod.writer.verdict({"save": SAVE}) == {"verdict": ""}


def test_what_was_dropped_is_never_committed(pod: Pod, tmp_path: Path) -> None:
    pod.save(0, tmp_path / "ck")
    assert pod.written(0)["state"] == HANDED_IN
    assert pod.writer.drop({"save": SAVE}) == {"verdict": DROPPED}
    pod.save(1, tmp_path / "ck")
    assert pod.written(1)["state"] == HANDED_IN
    assert pod.writer.verdict({"save": SAVE}) == {"verdict": DROPPED}
    assert not (tmp_path / "ck" / marker.NAME).exists()


def test_it_is_too_late_to_drop_what_is_committed(pod: Pod, tmp_path: Path) -> None:
    for rank in (0, 1):
        pod.save(rank, tmp_path / "ck")
    pod.writer.verdict({"save": SAVE})
    assert pod.writer.drop({"save": SAVE}) == {"verdict": ""}


def test_a_copier_that_was_replaced_knows_of_nothing(pod: Pod) -> None:
    assert pod.written(0)["state"] == UNKNOWN
    assert pod.writer.verdict({"save": SAVE}) == {"verdict": "the copier was replaced", "copiers": True}


def test_asking_twice_writes_once(pod: Pod, tmp_path: Path) -> None:
    pod.save(0, tmp_path / "ck")
    assert pod.written(0)["state"] == HANDED_IN
    (tmp_path / "ck" / "__0_0.distcp").unlink()
    pod.save(0, tmp_path / "ck")
    assert pod.written(0)["state"] == HANDED_IN
    assert not (tmp_path / "ck" / "__0_0.distcp").exists()


def test_a_head_that_cannot_be_reached_is_the_copiers_problem(pod: Pod, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.copies.writer.PAUSE", 0.01)
    pod.save(1, tmp_path / "ck", head="127.0.0.1:1")
    answer = pod.written(1)
    assert answer["state"] == LOST
    assert "127.0.0.1:1 cannot be told that rank 1 is done" in answer["problem"]


def test_another_pods_files_are_handed_in_over_the_network(pod: Pod, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    head = Pod(tmp_path / "head", address)
    head.fill(0)

    def serve() -> None:
        sock, _ = listener.accept()
        with sock, pytest.raises(Exception, match="closed"):
            head.keeper.serve(Courier(sock, TOKEN, server=True), part=head.writer.serve)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    head.save(0, tmp_path / "ck", head=address)
    pod.save(1, tmp_path / "ck", head=address)
    assert head.writer.verdict({"save": SAVE}) == {"verdict": ""}
    assert sorted(content(tmp_path / "ck")["files"]) == ["__0_0.distcp", "__1_0.distcp"]
    thread.join(10)
    listener.close()
