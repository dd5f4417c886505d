"""The cluster's own fault table as a file that changes."""

from __future__ import annotations

from pathlib import Path

from trainyard.agent.faults import shipped
from trainyard.agent.table import OwnTable


async def test_the_last_good_table_stays_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    own = OwnTable(file)
    await own.look()
    assert own.wrong is not None, "a file that was asked for and is not there is no empty one"
    assert str(file) in own.wrong.message
    assert own.table is shipped()
    file.write_text("codes: {A1: {level: SubHealthFault}}")
    await own.look()
    assert own.wrong is None
    good = own.table
    for text in (b"codes: [", b"\xff\xfe", b"codes: {A1: {level: Bad}}", None):
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text)
        await own.look()
        assert own.wrong is not None
        assert own.table is good
    file.write_text("codes: {A1: {level: SubHealthFault}}")
    await own.look()
    assert own.wrong is None
    assert own.table.codes["A1"].level == "SubHealthFault"


async def test_without_a_file_it_is_the_shipped_one() -> None:
    own = OwnTable(None)
    await own.look()
    assert (own.table, own.wrong) == (shipped(), None)
