"""train.profile: a trace of every rank, and a page that says where the time went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train.gang import train

COLUMNS = ("seconds", "compute", "communication", "bubble", "data", "checkpoint", "other")


def table(page: str) -> list[dict[str, float]]:
    """The rows of the ranks; shares in per cent."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line[:3].strip("| ").isdecimal()]
    return [dict(zip(COLUMNS, (float(cell.rstrip("%")) for cell in row[1:]), strict=True)) for row in rows]


@pytest.mark.parametrize(("parallel", "busy"), [({"shard": 2}, "communication"), ({"pipeline": 2}, "bubble")])
def test_summary_and_trace(tmp_path: Path, config: dict[str, Any], parallel: dict[str, Any], busy: str) -> None:
    config |= {"steps": 6, "parallel": parallel, "profile": {"first": 3, "steps": 2}, "export": False}
    ended = train(tmp_path / "run", config, 2, checkpoint=tmp_path / "ck", every=3)
    assert ended.codes == [0, 0], ended.text
    page = (tmp_path / "ck" / "profile" / "summary.md").read_text()
    assert page.startswith("# Steps 3 to 4\n")
    ranks = table(page)
    assert len(ranks) == 2
    for shares in ranks:
        assert sum(shares.values()) - shares["seconds"] == pytest.approx(100, abs=0.4)
        assert shares["compute"] > 5
        assert shares["data"] > 0
        assert shares["checkpoint"] > 0  # step 3 is saved
    most = {name: max(shares[name] for shares in ranks) for name in ("communication", "bubble")}
    assert most[busy] > 1, page
    assert most[busy] == max(most.values()), page
    assert "pipeline" in parallel or not most["bubble"], page
    assert ("Bubble: " in page) == ("pipeline" in parallel)
    for rank in range(2):
        trace = json.loads((tmp_path / "ck" / "profile" / f"trace-rank-{rank}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("trainyard::step") >= 2
        assert "aten::mm" in names


def test_nowhere_to_write(tmp_path: Path, config: dict[str, Any]) -> None:
    config |= {"profile": {}}
    ended = train(tmp_path / "run", config, 1)
    assert ended.codes == [78]
    assert "train.profile.folder is needed" in ended.err[0]
