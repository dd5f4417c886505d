"""One rank of a parity case: the trainer's own loop, whose gradients are compared with those of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parity import broken, reference
from parity.samples import STEPS, Samples
from torch.distributed.tensor import DTensor
from trainer import config as configs
from trainer import pretrain
from trainer.distributed import connect
from trainer.loop import Loop, Totals, first_weights
from trainer.model import shape
from trainer.optimizer import AdamW, learning_rate
from trainer.parallel import layout as layouts
from trainer.parallel.model import ParallelModel
from trainer.progress import Progress


def whole(tensor: Any) -> torch.Tensor:
    """A gradient as one process has it."""
    full: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


class Compared(Loop):
    """Notes how far each step is from the reference, before it clips."""

    expected: list[reference.Step]
    differences: list[dict[str, Any]]

    def update(self, totals: Totals, rate: float) -> None:
        """Compare, then go on."""
        want = self.expected[self.step]
        worst, name = 0.0, ""
        distance, distant = 0.0, ""
        missing = []
        for parameter_name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                missing.append(parameter_name)
                continue
            found, right = whole(parameter.grad), want.gradients[parameter_name]
            far = float((found - right).abs().max() / right.abs().max().clamp(min=1e-12))
            if not far <= worst:  # NaN is the worst
                worst, name = far, parameter_name
            away = float((found - right).norm() / right.norm().clamp(min=1e-12))
            if not away <= distance:
                distance, distant = away, parameter_name
        self.differences.append({"loss": totals.loss, "lossOff": abs(totals.loss - want.loss), "norm": totals.norm,
                                 "normOff": abs(totals.norm - want.norm) / want.norm, "gradientOff": worst,
                                 "parameter": name, "distance": distance, "distant": distant, "missing": missing})
        super().update(totals, rate)


def main(truth: Path, output: Path, damage: str) -> None:
    """Compare STEPS steps; rank r writes what it found to output/r.json."""
    torch.set_num_threads(1)
    broken.apply(damage)
    config, run = configs.load([], os.environ)
    fields = shape.fields(config.model)
    layout = layouts.fit(configs.layout(config, run.rank.world_size), fields, config.data.sequence_length)
    batch_size = configs.batch_size(config, layout)
    gang = connect(run.rank, None)
    precision: Any = "fp32" if config.precision == "auto" else config.precision
    model: ParallelModel = pretrain.parallel_model(config, gang, layout, fields, precision)
    first_weights(model, config, gang)
    data: Any = Samples()
    loop = Compared(config, run, gang, model, AdamW(model, config.optimizer), data, None, batch_size, precision,
                    Progress(None), {})
    loop.expected, loop.differences = reference.load(truth), []
    for number in range(STEPS):
        loop.train_step(learning_rate(config.optimizer, config.steps, number + 1))
    found = {"names": [name for name, _ in model.named_parameters()], "steps": loop.differences}
    (output / f"{gang.rank}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)
