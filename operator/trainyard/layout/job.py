"""A TrainingJob as the planner sees it. Not for the trainer, whose image has nothing of placement."""

from __future__ import annotations

from dataclasses import replace

from trainyard.api import TRAINER_CONTAINER
from trainyard.api.job import TrainingJobSpec
from trainyard.layout.hardware import Hardware, for_resource
from trainyard.layout.problems import InvalidLayout
from trainyard.layout.resolve import of_train
from trainyard.layout.types import Workload
from trainyard.placement.quantities import whole


def of_job(spec: TrainingJobSpec, hardware: Hardware | None = None, nodes: int | None = None,
           model: str = "") -> Workload | None:  # fmt: skip
    """The workload of a job; None if it runs a program of its own, or if only the files of train.model.path know the
    model's shape. `hardware` and `nodes` instead of the job's own; `model`: what the devices' agent calls them.
    Raises InvalidLayout."""
    if spec.train is None:
        return None
    row = hardware or for_resource(spec.devices.resource if spec.devices else None, model)
    if row.memory == 0 and (limit := _memory_limit(spec)):
        row = replace(row, memory=limit / spec.procs)
    return of_train(spec.train, (nodes or spec.num_nodes) * spec.procs, spec.procs, row)


def _memory_limit(spec: TrainingJobSpec) -> float:
    """Bytes that the trainer container may take; 0: no limit is stated."""
    pod = (spec.template or {}).get("spec") or {}
    for container in pod.get("containers") or ():
        if isinstance(container, dict) and container.get("name") == TRAINER_CONTAINER:
            limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
            try:
                return float(whole("memory", limit)) if limit else 0.0
            except ValueError as error:
                raise InvalidLayout("template", f"the container's memory limit: {error}") from None
    return 0.0
