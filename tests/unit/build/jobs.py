"""Jobs for tests of the builders."""

from __future__ import annotations

from typing import Any

from trainyard.api.job import TrainingJobSpec
from trainyard.build import BuildSettings, JobRef

JOB = JobRef("team", "llama", "1234-uid")
SETTINGS = BuildSettings("registry/trainer:1", version="0.1.0")
TRAIN = {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/data"}]}, "steps": 3}


def train_job(template: Any = None, **fields: Any) -> TrainingJobSpec:
    """A job for the shipped trainer; `template` as in the manifest, other names fields of the spec."""
    return _job({"train": TRAIN}, template, fields)


def command_job(template: Any = None, **fields: Any) -> TrainingJobSpec:
    """A job with a program of its own."""
    return _job({"command": ["python", "train.py"]}, template, fields)


def _job(program: dict[str, Any], template: Any, fields: dict[str, Any]) -> TrainingJobSpec:
    given = {"numNodes": 2, **program, **({} if template is None else {"template": template}), **fields}
    return TrainingJobSpec.model_validate(given)


def pod_spec(**fields: Any) -> dict[str, Any]:
    """A template with these fields of the pod."""
    return {"spec": fields}


def trainer(**fields: Any) -> dict[str, Any]:
    """A template with these fields of the container `trainer`."""
    return pod_spec(containers=[{"name": "trainer", **fields}])
