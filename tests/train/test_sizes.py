"""The number of ranks changes on the way: the same samples a step, and the losses of a run that kept its size."""

from __future__ import annotations

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
