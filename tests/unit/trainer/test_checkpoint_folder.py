"""Markers, verification, and which checkpoints may go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from supervisor.copies import marker
from trainer.checkpoint import folder as folders
from trainer.checkpoint.folder import Found, Marker
from trainer.checkpoint.resume import check_model, default_generation
from trainer.errors import ConfigError
from trainer.files import sum_file


def save(root: Path, step: int, generation: str, committed: bool = True) -> Path:
    path = root / folders.folder_name(step, generation)
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_bytes(b"tensors of %d" % step)
    if committed:
        folders.write_marker(path, Marker(step, generation, 1, {"hidden_size": 8}, {"samples": step},
                                          {"__0_0.distcp": sum_file(path / "__0_0.distcp")}))
    return path


def names(root: Path) -> list[str]:
    return [found.path.name for found in folders.scan(root)]


def test_newest_first_by_step_then_generation(tmp_path: Path) -> None:
    for step, generation in [(9, "1"), (10, "1"), (10, "10"), (10, "2"), (10, "2.1"), (100, "1")]:
        save(tmp_path, step, generation)
    (tmp_path / "export").mkdir()
    (tmp_path / "step-5").mkdir()
    assert names(tmp_path) == ["step-100.g1", "step-10.g10", "step-10.g2.1", "step-10.g2", "step-10.g1", "step-9.g1"]
    assert folders.scan(tmp_path / "missing") == []
    assert default_generation(tmp_path) == "11"


def test_marker_round_trip_and_every_way_to_break_it(tmp_path: Path) -> None:
    path = save(tmp_path, 3, "1")
    marker, problem = folders.read_marker(path)
    assert marker is not None
    assert (marker.step, marker.training, problem) == (3, {"samples": 3}, "")
    assert folders.verify(path, marker.files) is None
    good = (path / folders.MARKER).read_text()
    for bad in (good[: len(good) // 2], "", good.replace('"step": 3', '"step": 4'), "[]", '{"digest": 1}'):
        (path / folders.MARKER).write_text(bad)
        broken, problem = folders.read_marker(path)
        assert broken is None
        assert folders.MARKER in problem


def test_verify_names_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 3, "1")
    marker, _ = folders.read_marker(path)
    assert marker is not None
    file = path / "__0_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    assert "__0_0.distcp is damaged" in (folders.verify(path, marker.files) or "")
    file.write_bytes(content[:-1])
    assert "should have 12 bytes, found 11" in (folders.verify(path, marker.files) or "")
    file.unlink()
    assert "is missing (is the checkpoint folder shared" in (folders.verify(path, marker.files) or "")


def test_retire_keeps_the_newest_and_what_was_resumed_from(tmp_path: Path) -> None:
    resumed = save(tmp_path, 1, "1")
    for step in (2, 3):
        save(tmp_path, step, "2")
    save(tmp_path, 4, "1", committed=False)
    save(tmp_path, 5, "2", committed=False)
    folders.retire(tmp_path, (2,), 1, {resumed}, set())
    # 4.g1 is what an older generation left; 5.g2 is being written
    assert names(tmp_path) == ["step-5.g2", "step-3.g2", "step-1.g1"]


def test_stale_generation_deletes_nothing(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, "2")
    save(tmp_path, 3, "2.1", committed=False)
    assert folders.retire(tmp_path, (2,), 1, set(), set()) == []
    assert len(names(tmp_path)) == 4


def test_damaged_do_not_count_and_go_when_enough_whole_ones_exist(tmp_path: Path) -> None:
    damaged = save(tmp_path, 9, "1")
    save(tmp_path, 3, "2")
    folders.retire(tmp_path, (2,), 2, set(), {damaged})
    assert names(tmp_path) == ["step-9.g1", "step-3.g2"]
    save(tmp_path, 4, "2")
    folders.retire(tmp_path, (2,), 2, set(), {damaged})
    assert names(tmp_path) == ["step-4.g2", "step-3.g2"]


def test_remove_takes_the_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 3, "1")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if we were killed here
    assert not folders.remove(path)
    assert folders.read_marker(path)[0] is None


def test_another_model(tmp_path: Path) -> None:
    marker, _ = folders.read_marker(save(tmp_path, 3, "1"))
    found = Found(tmp_path / "step-3.g1", 3, (1,), marker)
    check_model(found, {"hidden_size": 8})
    with pytest.raises(ConfigError, match=r"another model: hidden_size is 8 there and 16 in train\.model"):
        check_model(found, {"hidden_size": 16})


def test_newer_version_is_neither_loaded_nor_deleted(tmp_path: Path) -> None:
    """A trainer that was rolled back must not take its successor's checkpoints for what a crash left."""
    path = save(tmp_path, 3, "1")
    content = json.loads((path / folders.MARKER).read_text())
    content["version"] = 99
    del content["digest"]
    content["digest"] = marker.digest(content)
    (path / folders.MARKER).write_text(json.dumps(content))
    assert "written by a newer trainer" in folders.read_marker(path)[1]
    save(tmp_path, 4, "2")
    assert folders.retire(tmp_path, (2,), 1, set(), set()) == []


def test_a_marker_that_cannot_be_read_now_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    path = save(tmp_path, 3, "1")
    (path / folders.MARKER).unlink()
    (path / folders.MARKER).mkdir()  # reading it fails for root, too
    save(tmp_path, 4, "2")
    assert folders.retire(tmp_path, (2,), 1, set(), set()) == []


def test_a_torn_marker_goes_once_enough_whole_ones_exist(tmp_path: Path) -> None:
    path = save(tmp_path, 3, "1")
    (path / folders.MARKER).write_text('{"version": 1, "st')
    save(tmp_path, 4, "2")
    assert folders.retire(tmp_path, (2,), 2, set(), set()) == []
    assert folders.retire(tmp_path, (2,), 1, set(), set()) == [path]


def test_a_newer_generation_has_the_say_before_it_has_saved_anything(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, "2")
    folders.claim(tmp_path, "2")
    folders.claim(tmp_path, "3")  # it may be reading step 1 at this moment
    folders.claim(tmp_path, "2.1")  # comes late, and changes nothing
    assert folders.retire(tmp_path, (2,), 1, set(), set()) == []
    assert folders.retire(tmp_path, (2, 1), 1, set(), set()) == []
    assert len(folders.retire(tmp_path, (3,), 1, set(), set())) == 2
    assert default_generation(tmp_path) == "4"
    assert [path.name for path in tmp_path.glob("generation-*")] == ["generation-3"]


class OneRank:
    """Stands for torch's collectives of a gang that breaks at the n-th of them."""

    def __init__(self, breaks_at: int) -> None:
        self.left = breaks_at

    def all_gather_object(self, everybody: list[Any], mine: Any, group: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("Connection closed by peer")
        everybody[:] = [mine]


@pytest.mark.parametrize(("breaks_at", "kept"), [(1, False), (2, False), (3, True)])
def test_a_gang_that_breaks_after_the_marker_leaves_the_checkpoint(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks_at: int, kept: bool) -> None:
    """The next generation may go on from it already; a broken one must not take it away."""
    import torch
    from trainer.checkpoint import saver as module
    from trainer.distributed import Gang

    def write(_state: Any, storage_writer: Any, process_group: Any) -> None:
        for name in ("__0_0.distcp", ".metadata"):
            (Path(storage_writer.path) / name).write_bytes(b"tensors")

    failures: list[str] = []
    monkeypatch.setattr(module, "save_distributed", write)
    collectives = OneRank(breaks_at)
    monkeypatch.setattr(module, "dist", collectives)
    gang = Gang(0, 1, 0, torch.device("cpu"), None, None)
    saver = module.Saver(tmp_path, gang, "1", 3, {}, lambda step: None, lambda step, why: failures.append(why))
    for _ in range(2):  # and if it is tried again
        saver.start(7, {}, {"samples": 1})
        saver.wait()
        assert failures
        assert saver.saved_step is None
        found = folders.scan(tmp_path)
        assert [(one.step, one.marker is not None) for one in found] == ([(7, True)] if kept else [])
        if found and found[0].marker is not None:
            assert folders.verify(found[0].path, found[0].marker.files) is None
        collectives.left = 1
