"""What the builders take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard.api.job import LayoutStatus
from trainyard.placement.books import Demand

Object = dict[str, Any]
"""A Kubernetes object as plain JSON."""


class InvalidTemplate(ValueError):
    """The manifest asks for a pod that Trainyard cannot build; only another manifest helps.

    `path` is the field of the TrainingJob, such as spec.template.spec.containers[0].command; `message` says what was
    expected, what was found and what to do. `str()` is both.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class JobRef:
    """The TrainingJob that owns what is built."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What the installation decides about pods."""

    trainer_image: str
    """Image of `train` jobs whose template names none."""
    supervisor_image: str = ""
    """Image that brings /opt/trainyard/supervisor.pyz to `command` jobs; empty: the trainer image."""
    image_pull_policy: str = ""
    """imagePullPolicy of those two images; empty: Kubernetes' own default for their tags."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets in the job's namespace that those two images are pulled with."""
    version: str = ""
    """Version of this Trainyard, recorded with every rendering."""


@dataclass(frozen=True, slots=True)
class RenderedJob:
    """What every pod of a job is made from, until the job is suspended and resumed."""

    job: JobRef
    template: Mapping[str, Any]  # PodTemplateSpec without what differs from pod to pod
    train: Mapping[str, Any] | None  # TrainConfig as in train.json; None for `command` jobs
    hash: str  # 10 hex digits over everything that is kept in the ConfigMap
    supervisor_image: str
    version: str
    demand: Demand | None = None  # known once the API server has tried a pod out
    asked: Mapping[str, Any] | None = None  # spec.train as the manifest has it
    layout: LayoutStatus | None = None  # the chosen layout with its estimate
    candidates: Sequence[Mapping[str, Any]] | None = None  # what train.autotune measures, as in candidates.json

    @property
    def name(self) -> str:
        """Name of the ConfigMap."""
        return f"{self.job.name}-{self.hash}"

    @property
    def grace_seconds(self) -> int:
        """Seconds a pod gets between SIGTERM and SIGKILL."""
        return int(self.template["spec"]["terminationGracePeriodSeconds"])

    @property
    def checkpoint(self) -> bool:
        """Whether there is a checkpoint volume."""
        return any(volume["name"] == CHECKPOINT_VOLUME for volume in self.template["spec"]["volumes"])

    @property
    def service_account(self) -> str:
        """The account that the supervisors talk to the API server with."""
        return str(self.template["spec"]["serviceAccountName"])


CHECKPOINT_VOLUME = "trainyard-checkpoint"
