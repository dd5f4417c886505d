"""Run a layout in processes of its own and say how far it is from one process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity import reference
from parity.samples import config
from train import gang
from train.gang import Gang

for module in ("parity.rank", "trainer.export", "torch.distributed.pipelining.schedules"):
    if module not in gang.PRELOADED:
        gang.PRELOADED.append(module)


@dataclass(frozen=True)
class Off:
    """The largest differences over all steps, ranks and parameters."""

    loss: float  # absolute
    norm: float  # relative
    gradient: float  # relative to the largest number of that parameter's gradient
    parameter: str
    distance: float  # of a parameter's gradient from the right one, relative to the length of that
    distant: str  # its parameter
    missing: tuple[str, ...]  # parameters that no rank had, or without a gradient
    text: str

    def within(self, loss: float, gradient: float) -> bool:
        """Equal up to these bounds? The norm is bound like the gradients."""
        return self.loss <= loss and self.norm <= gradient and self.gradient <= gradient and not self.missing

    def near(self, loss: float, norm: float, distance: float) -> bool:
        """Likewise, computed with fewer bits: single numbers of a gradient may be anything, all together may not."""
        return self.loss <= loss and self.norm <= norm and self.distance <= distance and not self.missing


def truth_of(fields: dict[str, Any], folder: Path) -> Path:
    """The file of the reference; made once for all layouts of a model."""
    telling = ("family", "model", "documents", "optimizer", "experts", "parts")
    kept = {key: value for key, value in fields.items() if key in telling}
    key = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{key}.pt"
    if not file.exists():
        reference.save(config(**kept), file)
    return file


def run(folder: Path, truths: Path, ranks: int, damage: str = "none", **fields: Any) -> Off:
    """Train `ranks` processes with the given fields of TrainConfig; `parts`: micro-batches of a mixture's batch."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = truth_of(fields, truths)
    program = ["-m", "parity.rank", str(truth), str(folder), damage]
    with Gang(folder / "gang", [config(ranks, **fields)] * ranks, program=program) as processes:
        ended = processes.wait(280)
    assert ended.codes == [0] * ranks, ended.text
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    names = {name for one in found for name in one["names"]}
    steps = [step for one in found for step in one["steps"]]
    expected = set(reference.load(truth)[0].gradients)
    worst, farthest = (max(steps, key=lambda step: float("inf") if step[name] != step[name] else step[name])
                       for name in ("gradientOff", "distance"))
    missing = {*(expected - names), *(name for step in steps for name in step["missing"])}
    off = Off(max(step["lossOff"] for step in steps), max(step["normOff"] for step in steps), worst["gradientOff"],
              worst["parameter"], farthest["distance"], farthest["distant"], tuple(sorted(missing)), "")
    losses = " ".join(f"{step['loss']:.6f}" for step in found[0]["steps"])
    return replace(off, text=(
        f"loss off {off.loss:.1e}, norm {off.norm:.1e}, gradient {off.gradient:.1e} ({off.parameter}), distance "
        f"{off.distance:.1e} ({off.distant}), missing {list(off.missing)}; losses {losses}; {ended.seconds:.1f} s"))
