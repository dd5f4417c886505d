"""train.autotune in real gangs: layouts are measured one after the other in the same processes, the fastest is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from supervisor.failures import is_consequence
from train.gang import Gang, train
from trainer.tuning import FILE, Record
from trainyard.api.train import TrainConfig
from trainyard.layout.autotune import Candidate, name_of

LAYOUTS: list[dict[str, Any]] = [{"shard": 2, "tensor": 1}, {"data": 2, "shard": 1, "tensor": 1},
                                 {"shard": 1, "tensor": 2}]
ONES = {"data": 1, "pipeline": 1, "context": 1, "expert": 1}


def settled(config: dict[str, Any], parallel: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**config, "steps": 6, "export": False, "parallel": {**ONES, **parallel}, **more}


def candidates(folder: Path, config: dict[str, Any], chosen: list[dict[str, Any]]) -> list[Candidate]:
    """Beside the configuration, as the operator puts them."""
    trains = [TrainConfig.model_validate(settled(config, each, autotune=True)) for each in chosen]
    made = [Candidate(name_of(each), f"layout {number}", 0.1 * number, each) for number, each in enumerate(trains, 1)]
    folder.mkdir()
    (folder / "candidates.json").write_text(json.dumps([each.dump() for each in made]))
    return made


def record(root: Path) -> Record:
    return Record.parse((root / FILE).read_text())


def test_the_fastest_is_kept_and_training_begins_as_if_nothing_had_been(tmp_path: Path, config: dict[str, Any]) -> None:
    """The first is slow, of the second one rank fails while the other waits for it, the third is the winner. Then the
    job goes on in another generation, without its checkpoints even, and measures nothing."""
    direct = train(tmp_path / "direct", settled(config, LAYOUTS[2]))
    assert direct.codes == [0, 0], direct.text
    made = candidates(tmp_path / "run", config, LAYOUTS)
    first = settled(config, LAYOUTS[0], autotune=True)
    inject = "layout:number=1,slow=1000; layout:number=2,fails,rank=1"
    with Gang(tmp_path / "run", [first] * 2, checkpoint=tmp_path / "ck", every=3,
              environment={"TRAINYARD_INJECT": inject}) as gang:
        gang.wait_for(lambda told: told.get("activity", "").startswith("autotune "))
        ended = gang.wait()
        told = gang.progress()
    assert ended.codes == [0, 0], ended.text
    assert "given back" not in "".join(ended.out), ended.text
    table = ended.out[0].partition("estimated s/step")[2].splitlines()
    assert "rank 1: MemoryError: out of memory" in table[2]
    assert table[3].split()[-1] == "chosen", ended.text
    assert len(ended.losses) == 6
    assert ended.losses == direct.losses
    assert (told["tuned"], told["tensor"], told["shard"]) == (made[2].name, 2, 1)
    assert [row.get("problem", "")[:7] for row in told["measured"]] == ["", "rank 1:", ""]
    assert told["measured"][0]["secondsPerStep"] > 1000 > told["measured"][2]["secondsPerStep"] > 0

    kept = record(tmp_path / "ck")
    assert (kept.tuned, kept.at, kept.starts) == (made[2].name, "", 1)
    candidates(tmp_path / "again", config, LAYOUTS)
    again = train(tmp_path / "again", {**first, "steps": 7}, checkpoint=tmp_path / "ck", generation="2")
    assert again.codes == [0, 0], again.text
    assert list(again.losses) == [7]
    assert "tensor 2" in again.out[0]
    assert "autotune 1/3" not in again.out[0]


def test_products_of_four_ranks(tmp_path: Path, config: dict[str, Any]) -> None:
    """Layouts with several groups each are taken down whole, also where one rank fails while those of its other groups
    wait for it; then training begins as if nothing had been."""
    products: list[dict[str, Any]] = [{"shard": 2, "context": 2, "ulysses": 1, "tensor": 1},
                                      {"shard": 1, "pipeline": 2, "tensor": 2}, {"shard": 2, "tensor": 2}]
    config["batchSize"] = 4
    config["model"]["config"]["num_hidden_layers"] = 2
    direct = train(tmp_path / "direct", settled(config, products[2], steps=2), 4)
    assert direct.codes == [0] * 4, direct.text
    made = candidates(tmp_path / "run", config, products)
    inject = "layout:number=1,slow=1000; layout:number=2,fails,rank=3"
    with Gang(tmp_path / "run", [settled(config, products[0], autotune=True, steps=2)] * 4,
              environment={"TRAINYARD_INJECT": inject}) as gang:
        ended = gang.wait()
        told = gang.progress()
    assert ended.codes == [0] * 4, ended.text
    assert "given back" not in "".join(ended.out), ended.text
    assert [row.get("problem", "")[:7] for row in told["measured"]] == ["", "rank 3:", ""]
    assert (told["tuned"], told["tensor"], told["shard"]) == (made[2].name, 2, 2)
    assert len(ended.losses) == 2
    assert ended.losses == direct.losses


def test_a_killed_rank_begins_the_measurement_anew(tmp_path: Path, config: dict[str, Any]) -> None:
    candidates(tmp_path / "first", config, LAYOUTS[:2])
    config = settled(config, LAYOUTS[0], autotune=True, steps=2)
    died = train(tmp_path / "first", config, checkpoint=tmp_path / "ck",
                 environment={"TRAINYARD_INJECT": "layout:number=2,dies,rank=1"})
    assert died.codes[1] == -9, died.text
    assert died.codes[0] == 1
    assert is_consequence(died.err[0].strip().splitlines()[-1]), died.text
    before = record(tmp_path / "ck")
    assert (before.starts, before.tuned) == (1, "")
    assert before.at == before.candidates[1]
    candidates(tmp_path / "second", config, LAYOUTS[:2])
    ended = train(tmp_path / "second", config, checkpoint=tmp_path / "ck", generation="2")
    assert ended.codes == [0, 0], ended.text
    after = record(tmp_path / "ck")
    assert (after.starts, dict(after.ends)) == (2, {before.candidates[1]: 1})
    assert [row.problem for row in after.rows] == ["", ""]
    assert after.tuned in after.candidates


@pytest.mark.parametrize("told", [True, False])
def test_what_the_operator_remembers_is_not_measured(tmp_path: Path, config: dict[str, Any], told: bool) -> None:
    made = candidates(tmp_path / "run", config, LAYOUTS[:2])
    known = {"TRAINYARD_TUNED": made[1].name if told else "another job's"}
    with Gang(tmp_path / "run", [settled(config, LAYOUTS[0], autotune=True, steps=1)] * 2, environment=known) as gang:
        ended = gang.wait()
        assert (gang.progress()["data"] == 2) >= told
    assert ended.codes == [0, 0], ended.text
    assert ("autotune 1/2" in ended.out[0]) is not told
