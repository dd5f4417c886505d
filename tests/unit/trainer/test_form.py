"""Files that a copier writes from a slot are those that torch writes."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from supervisor.copies.keeper import Keeper
from supervisor.copies.slot import Slot
from supervisor.copies.sums import Sums
from supervisor.copies.writer import write_part
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import load as load_distributed
from trainer.checkpoint import form
from trainer.checkpoint.memory import pieces, view
from trainer.checkpoint.saver import State

LAYOUT = "0123456789abcdef"


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_slot_becomes_a_checkpoint_that_torch_loads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state: State = {"model": {"a": torch.randn(5, 3), "b": torch.randn(7), "none": torch.empty(0, 4)},
                    "first_moment": {"a": torch.randn(5, 3).to(torch.bfloat16)}}
    keeper = Keeper(str(tmp_path))
    found, size = pieces(state)
    (tmp_path / "own" / LAYOUT).mkdir()
    slot = Slot.create(keeper.path("own", f"{LAYOUT}/0.1"), {}, size)
    for piece, tensor in found:
        view(slot.data, piece).copy_(tensor)
    slot.set_seal({"number": 5})
    path = Path(keeper.form(LAYOUT, 0))
    assert form.name_of(path) == ""
    form.write(path, "first", state, [piece for piece, _ in found], None)
    assert form.name_of(path) == "first"
    order = {"layout": LAYOUT, "rank": 0, "slot": 1, "number": 5, "folder": str(tmp_path / "ck")}
    files = write_part(keeper, Sums(keeper), order, lambda: False)
    assert sorted(files) == [".metadata", "__0_0.distcp"]
    empty: State = {part: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
                    for part, tensors in state.items()}
    load_distributed(empty, storage_reader=FileSystemReader(tmp_path / "ck"), no_dist=True)
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            assert torch.equal(empty[part][name], tensor), (part, name)


@pytest.mark.parametrize("tensor", [torch.arange(6.0).view(2, 3), torch.ones(1), torch.ones(3, dtype=torch.float16)])
def test_an_archive_is_whole_for_every_other_program_too(tensor: torch.Tensor) -> None:
    before, count, after, sums = form.archive(tensor.dtype, tuple(tensor.shape))
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert count == len(data)
    end = bytearray(after)
    for place in sums:
        end[place:place + 4] = zlib.crc32(data).to_bytes(4, "little")
    file = io.BytesIO(before + data + bytes(end))
    assert zipfile.ZipFile(file).testzip() is None
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), tensor)
    theirs = io.BytesIO()
    torch.save(tensor, theirs)
    assert len(theirs.getvalue()) == len(file.getvalue())
