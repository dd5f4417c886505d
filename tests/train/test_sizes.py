"""The number of ranks changes on the way: the same samples a step, and the losses of a run that kept its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train.gang import train
from trainer.planned import resized
from trainyard.api.train import TrainConfig

BEFORE, SMALLER, AFTER = 2, 20, 2  # steps


@pytest.mark.parametrize(("size", "smaller", "batch"), [(4, 3, 8), (3, 2, 9)])
def test_a_smaller_gang_and_back(tmp_path: Path, config: dict[str, Any], size: int, smaller: int, batch: int) -> None:
    """With a batch that the smaller gang cannot share out evenly: what is missing is padding that weighs nothing."""
    total = BEFORE + SMALLER + AFTER
    config["optimizer"].update(warmupSteps=1, minLearningRate=config["optimizer"]["learningRate"])
    config.update(steps=total, batchSize=batch, microBatchSize=1, export=False, logEvery=1, parallel={
        "data": 1, "shard": size, "tensor": 1, "pipeline": 1, "context": 1})
    assert batch % smaller
    undisturbed = train(tmp_path / "same", config, size, checkpoint=tmp_path / "same-ck")
    assert undisturbed.codes == [0] * size, undisturbed.text
    made = resized(TrainConfig.model_validate(config), smaller)
    assert made is not None
    fewer = {**config, "parallel": made.parallel.dump()}
    found: dict[int, float] = {}
    for number, (ranks, now, steps) in enumerate([
            (size, config, BEFORE), (smaller, fewer, BEFORE + SMALLER), (size, config, total)]):
        ended = train(tmp_path / str(number), {**now, "steps": steps}, ranks, checkpoint=tmp_path / "ck",
                      generation=str(number + 1))
        assert ended.codes == [0] * ranks, ended.text
        found |= {step: float(loss) for step, loss in ended.losses.items()}
    expected = {step: float(loss) for step, loss in undisturbed.losses.items()}
    assert sorted(found) == list(range(1, total + 1))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_smaller_gang_fills_up_the_rounds_of_a_pipeline(tmp_path: Path, config: dict[str, Any]) -> None:
    """Six ranks have whole rounds of three micro-batches; two would have nine, with which the schedule cannot run."""
    config["model"]["config"]["num_hidden_layers"] = 4
    config.update(steps=3, batchSize=9, microBatchSize=1, export=False, logEvery=1)
    alone = train(tmp_path / "alone", config, 1)
    assert alone.codes == [0], alone.text
    sizes = {"data": 3, "shard": 1, "tensor": 1, "pipeline": 2, "context": 1, "schedule": "Interleaved1F1B"}
    folder = tmp_path / "smaller"
    folder.mkdir()
    (folder / "asked.json").write_text(json.dumps(config))
    ended = train(folder, {**config, "parallel": sizes}, 2)
    assert ended.codes == [0, 0], ended.text
    assert "pipeline 2, Interleaved1F1B" in ended.out[0]
    found, expected = ({step: float(loss) for step, loss in each.losses.items()} for each in (ended, alone))
    assert found == pytest.approx(expected, rel=1e-5)
