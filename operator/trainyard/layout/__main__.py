"""`python -m trainyard.layout job.yaml`: the ranked layouts of a job, without a cluster."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from trainyard.api.job import TrainingJobSpec
from trainyard.layout import autotune
from trainyard.layout.choose import Ranking, choose
from trainyard.layout.hardware import GB, HARDWARE, named
from trainyard.layout.job import of_job
from trainyard.layout.table import explained, table


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns 0, or 1 with one line on stderr if there is no layout."""
    given = parser().parse_args(arguments)
    try:
        print(answer(given))
    except (ValueError, OSError) as error:
        print(f"{given.job}: {told(error)}", file=sys.stderr)
        return 1
    return 0


def answer(given: argparse.Namespace) -> str:
    """What is asked for with the options. Raises ValueError and OSError."""
    return report(given.job.read_text(), nodes=given.nodes, device=given.device, memory=given.memory, rows=given.rows,
                  explain=given.explain)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options, which `kubectl trainyard plan` has as well."""
    made = argparse.ArgumentParser(prog="python -m trainyard.layout",
                                   description="Rank the parallel layouts of a TrainingJob offline.")
    add_options(made)
    return made


def add_options(made: argparse.ArgumentParser) -> None:
    """What there is to say besides the manifest."""
    made.add_argument("job", type=Path, help="manifest with a TrainingJob (YAML or JSON)")
    made.add_argument("--nodes", type=int, help="nodes, instead of the job's numNodes")
    made.add_argument("--device", help=f"device, instead of what the resource is taken for: {', '.join(HARDWARE)}")
    made.add_argument("--memory", type=float, help="GB of memory a device, instead of the device's own")
    made.add_argument("--rows", type=int, default=10, help="meshes that are shown (default: 10)")
    made.add_argument("--explain", action="store_true", help="show memory and time of the chosen layout by kind")


def report(text: str, *, nodes: int | None = None, device: str | None = None, memory: float | None = None,
           rows: int = 10, explain: bool = False) -> str:  # fmt: skip
    """The answer for the manifest in `text`. Raises ValueError: no such job or device, or no layout."""
    spec = job_in(text)
    hardware = named(device) if device else None
    if device and hardware is None:
        raise ValueError(f"unknown device {device!r}; known are {', '.join(HARDWARE)}")
    work = of_job(spec, hardware, nodes)
    if work is None:
        raise ValueError("there is nothing to plan: the job runs a program of its own (spec.command)" if not spec.train
                         else "only the files in train.model.path know the model's shape; set train.model.size or "
                              "train.model.config instead to plan without them")
    if memory is not None:
        work = replace(work, hardware=replace(work.hardware, memory=memory * GB))
    shape, row = work.shape, work.hardware
    head = (f"{shape.parameters / 1e9:.2f} billion parameters, {work.batch} samples of {work.sequence} tokens a step "
            f"in {work.precision}, {work.ranks} x {row.name}, {row.node} a node")
    ranking = choose(work)
    best = ranking.best
    parts = [head, table(ranking, rows)]
    if spec.train is not None and spec.train.autotune:
        parts.append(measured(ranking))
    if explain:
        parts.append(explained(best, row.memory))
    return "\n\n".join(parts)


def measured(ranking: Ranking) -> str:
    """What train.autotune will do. Raises InvalidLayout if there is nothing to choose."""
    autotune.check(ranking)
    found = autotune.candidates(ranking)
    if len(found) == 1:
        return "train.autotune: nothing is measured, no other layout is estimated to be near."
    return "\n".join(["train.autotune measures at the start:", *(f"  {each.layout}" for each in found)])


def job_in(text: str) -> TrainingJobSpec:
    """The one TrainingJob of a manifest. Raises ValueError."""
    try:
        found = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None
    jobs = [each for each in found if each.get("kind") == "TrainingJob"]
    if len(jobs) != 1:
        raise ValueError(f"expected one TrainingJob, found {len(jobs)}")
    return TrainingJobSpec.model_validate(jobs[0].get("spec"))


def told(error: Exception) -> str:
    """One line of an error; every wrong field of a manifest."""
    if isinstance(error, ValidationError):
        return "; ".join(f"spec.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
