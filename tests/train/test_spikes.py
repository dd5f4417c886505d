"""A spike of the loss: back to an older checkpoint, and on without the batches since, to the last digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.gang import Gang, train

SPIKE = {"factor": 2.0, "window": 4, "rewind": 3}


def test_a_spike_is_as_if_the_batches_had_been_left_out(tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=20, export=False, parallel={"shard": 2})
    told = train(tmp_path / "told", {**config, "skipSteps": [9, 10, 11, 12, 13]})
    assert told.codes == [0, 0], told.text
    with Gang(tmp_path / "spiked", [{**config, "spike": SPIKE}] * 2, checkpoint=tmp_path / "ck", every=8,
              environment={"TRAINYARD_INJECT": "spike:step=13"}) as gang:
        spiked = gang.wait()
        (warning,) = gang.progress()["warnings"]
    assert spiked.codes == [0, 0], spiked.text
    assert warning["reason"] == "LossSpike"
    assert "back to the weights of step 8, the batches since are left out" in warning["message"]
    assert [spiked.losses[step] for step in range(14, 21)] == [told.losses[step] for step in range(14, 21)]
    assert [spiked.losses[step] for step in range(1, 9)] == [told.losses[step] for step in range(1, 9)]


def test_without_an_old_checkpoint_the_batch_is_left_out(tmp_path: Path, config: dict[str, Any]) -> None:
    config.update(steps=9, export=False)
    told = train(tmp_path / "told", {**config, "skipSteps": [6]})
    with Gang(tmp_path / "spiked", [{**config, "spike": SPIKE}] * 2,
              environment={"TRAINYARD_INJECT": "spike:step=6"}) as gang:
        spiked = gang.wait()
        (warning,) = gang.progress()["warnings"]
    assert spiked.codes == [0, 0], spiked.text
    assert "only this batch is left out" in warning["message"]
    assert spiked.losses == told.losses
