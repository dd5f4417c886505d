"""NaN in the gradients of one rank of a real gang: computed again, skipped, given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.gang import Ended, Gang, train


def run(folder: Path, config: dict[str, Any], inject: str = "", **settings: Any) -> tuple[Ended, list[dict[str, Any]]]:
    """The gang's end, and its warnings."""
    with Gang(folder, [config] * 2, environment={"TRAINYARD_INJECT": inject}, **settings) as gang:
        ended = gang.wait()
        return ended, gang.progress()["warnings"]


def test_once_is_computed_again_and_twice_is_skipped(tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=9, batchSize=8, export=False, parallel={"shard": 2})
    never = train(tmp_path / "never", config)
    once, warnings = run(tmp_path / "once", config, "nan:step=4,rank=1")
    assert (never.codes, once.codes) == ([0, 0], [0, 0]), never.text + once.text
    assert once.losses == never.losses
    assert [warning["reason"] for warning in warnings] == ["NonFinite"]
    assert "step 4: loss or gradients were not finite (first at rank 1 (" in warnings[0]["message"]

    told = train(tmp_path / "told", {**config, "skipSteps": [4, 5, 7]})
    assert told.codes == [0, 0], told.text
    assert sorted(told.losses) == [1, 2, 3, 6, 8, 9]
    inject = "nan:step=4,rank=1,times=2;nan:step=5,rank=0,times=2;nan:step=7,times=2"
    twice, warnings = run(tmp_path / "twice", config, inject)
    assert twice.codes == [0, 0], twice.text
    assert twice.losses == told.losses
    assert "samples 48 to 55, is left out" in warnings[0]["message"]


def test_three_in_a_row_end_the_run_even_across_a_restart(tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=1000, export=False)
    inject = ";".join(f"nan:step={step},rank=1,times=2" for step in (3, 4, 5))
    with Gang(tmp_path / "first", [config] * 2, checkpoint=tmp_path / "ck", every=4,
              environment={"TRAINYARD_INJECT": inject.rsplit(";", 1)[0] + ";"}) as gang:
        gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 4)
        killed = gang.kill()
    assert "step 4/1000 batch skipped" in killed.out[0]
    for folder in (tmp_path / "ck").glob("step-*"):
        if folder.name != "step-4.g1":
            (folder / "COMMITTED.json").unlink(missing_ok=True)
    with Gang(tmp_path / "second", [config] * 2, checkpoint=tmp_path / "ck", generation="2",
              environment={"TRAINYARD_INJECT": inject}) as gang:
        ended = gang.wait()
        reasons = [gang.reason(rank) for rank in range(2)]
    assert ended.codes == [79, 79], ended.text
    assert all(reason.startswith("Diverged: step 5: the loss is ") for reason in reasons)
