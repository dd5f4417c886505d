"""The CustomResourceDefinitions, built from the types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainyard.api import GROUP, SCHEMA_VERSION, VERSION
from trainyard.api.base import rules
from trainyard.api.devices import NodeDevicesSpec, NodeDevicesStatus
from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import ReportSpec, WorldSpec
from trainyard.api.schema import Schema, structural

SCHEMA_VERSION_ANNOTATION = f"{GROUP}/schema-version"
MAX_NAME = 48  # leaves room for -<index>-<incarnation> in pod names that are host names too

_FROZEN = ("numNodes", "numProcPerNode", "devices", "topology", "runtime", "train", "command", "preload",
           "template", "checkpoint.volume", "checkpoint.subPath")
_AFTER_THE_END = ("suspend", "cleanPodPolicy", "ttlSecondsAfterFinished")

_REQUIRED = {field.alias for field in TrainingJobSpec.model_fields.values() if field.is_required()}

_NEVER_ADMITTED = "!has(oldSelf.status) || !has(oldSelf.status.admittedHash)"
_RESTING = ("has(oldSelf.spec.suspend) && oldSelf.spec.suspend && "
            "(!has(oldSelf.status) || !has(oldSelf.status.pods) || oldSelf.status.pods == 0)")
_ENDED = ("has(oldSelf.status) && has(oldSelf.status.conditions) && "
          "oldSelf.status.conditions.exists(c, c.type in ['Succeeded', 'Failed'] && c.status == 'True')")


def _unchanged(field: str) -> str:
    """CEL: this field of spec is what it was, or is absent as it was. (Optionals would read better, but their cost
    cannot be estimated.)"""
    if field in _REQUIRED:
        return f"self.spec.{field} == oldSelf.spec.{field}"
    parts = field.split(".")
    new, old = (" && ".join(f"has({root}.spec.{'.'.join(parts[:i + 1])})" for i in range(len(parts)))
                for root in ("self", "oldSelf"))
    if len(parts) > 1:
        new, old = f"({new})", f"({old})"
    return f"{new} == {old} && (!{new} || self.spec.{field} == oldSelf.spec.{field})"


def job_rules() -> list[dict[str, Any]]:
    """Rules over the whole TrainingJob: its name, and what may change when."""
    made: list[dict[str, Any]] = rules((
        f"size(self.metadata.name) <= {MAX_NAME} && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        f"metadata.name must be a DNS label of at most {MAX_NAME} characters: lower-case letters, digits and -",
    ), path=".metadata.name")["x-kubernetes-validations"]
    for field in _FROZEN:
        made += [{
            "rule": f"{_NEVER_ADMITTED} || ({_RESTING}) || ({_unchanged(field)})",
            "message": f"{field} can change only while the job is suspended and has no pods left: set spec.suspend to "
                       "true, wait until status.pods is 0, then change it",
            "reason": "FieldValueForbidden", "fieldPath": f".spec.{field}",
        }]
    others = [field.alias for field in TrainingJobSpec.model_fields.values() if field.alias not in _AFTER_THE_END]
    made.append({
        "rule": f"!({_ENDED}) || ({' && '.join(f'({_unchanged(str(name))})' for name in others)})",
        "message": f"the job has ended; of its spec only {', '.join(_AFTER_THE_END[:-1])} and {_AFTER_THE_END[-1]} can "
                   "still change. To train again, create a new job",
        "reason": "FieldValueForbidden", "fieldPath": ".spec",
    })
    return made


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    type: str
    path: str
    wide: bool = False  # only with -o wide
    description: str = ""

    def dump(self) -> dict[str, Any]:
        """As additionalPrinterColumns has it."""
        made: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.description:
            made["description"] = self.description
        return made | ({"priority": 1} if self.wide else {})


_AGE = Column("Age", "date", ".metadata.creationTimestamp")


@dataclass(frozen=True)
class Kind:
    """One custom resource."""

    kind: str
    plural: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel] | None
    columns: Sequence[Column]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("trainyard",)
    scope: str = "Namespaced"
    rules: Sequence[dict[str, Any]] = ()  # over the whole object

    @property
    def name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"

    def schema(self) -> Schema:
        """The whole object."""
        properties: Schema = {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{self.kind}."},
            "metadata": {"type": "object"},
            "spec": structural(self.spec),
        }
        made: Schema = {"description": self.description, "type": "object", "properties": properties,
                        "required": ["spec"]}
        if self.status:
            properties["metadata"]["properties"] = {"name": {"type": "string"}}  # so that a rule can point at it
            properties["status"] = structural(self.status)
        if self.rules:
            made["x-kubernetes-validations"] = list(self.rules)
        return made

    def dump(self) -> dict[str, Any]:
        """The CustomResourceDefinition. Deleting a release leaves it, and with it every job, in place."""
        version: dict[str, Any] = {
            "name": VERSION, "served": True, "storage": True, "schema": {"openAPIV3Schema": self.schema()},
            "additionalPrinterColumns": [column.dump() for column in self.columns],
        }
        if self.status:
            version["subresources"] = {"status": {}}
        names: dict[str, Any] = {"kind": self.kind, "listKind": f"{self.kind}List", "plural": self.plural,
                                 "singular": self.kind.lower(), "categories": list(self.categories)}
        if self.short_names:
            names["shortNames"] = list(self.short_names)
        return {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name, "annotations": {
                "helm.sh/resource-policy": "keep", SCHEMA_VERSION_ANNOTATION: str(SCHEMA_VERSION)}},
            "spec": {"group": GROUP, "scope": self.scope, "names": names, "versions": [version]},
        }


KINDS = (
    Kind("TrainingJob", "trainingjobs",
         "A model trained by a gang of pods that start together, survives the loss of any of its "
         "members and goes on from its newest checkpoint.",
         TrainingJobSpec, TrainingJobStatus, (
             Column("State", "string", ".status.state", description="One word for the whole."),
             Column("Ready", "integer", ".status.nodes.ready", description="Pods whose supervisor runs."),
             Column("Nodes", "integer", ".spec.numNodes", description="Pods that are wanted."),
             Column("Step", "integer", ".status.progress.step", description="Finished optimizer steps."),
             Column("Loss", "string", ".status.progress.loss", description="Training loss of that step."),
             Column("ETA", "string", ".status.progress.eta", description="When training is expected to end, UTC."),
             Column("Restarts", "integer", ".status.restarts.total", description="New starts after failures."),
             _AGE,
             Column("Steps", "integer", ".status.progress.steps", wide=True, description="Steps until the end."),
             Column("Tokens/s", "integer", ".status.progress.tokensPerSecond", wide=True,
                    description="Over all ranks."),
             Column("Durable", "integer", ".status.checkpoint.durableStep", wide=True,
                    description="Newest step whose checkpoint is complete."),
             Column("Generation", "integer", ".status.world.generation", wide=True,
                    description="Starts of the ranks so far."),
             Column("Devices", "string", ".spec.devices.resource", wide=True, description="Accelerators."),
             Column("Scheduled", "string", ".status.conditions[?(@.type==\"Scheduled\")].reason", wide=True,
                    description="Whether the gang has places, or why not."),
         ), short_names=("tj",), categories=("all", "trainyard"), rules=job_rules()),
    Kind("World", "worlds",
         "Which generation of a job's gang is current and what it should do. Written by the operator alone, watched "
         "by the job's supervisors; one a job, of the job's name. Holds the secret by which members know each other.",
         WorldSpec, None, (
             Column("Generation", "integer", ".spec.generation"), Column("Phase", "string", ".spec.phase"),
             Column("Size", "integer", ".spec.size"), Column("Cause", "string", ".spec.cause.kind"),
             Column("Master", "string", ".spec.master.pod", wide=True),
             Column("Address", "string", ".spec.master.address", wide=True), _AGE)),
    Kind("Report", "reports",
         "The newest word of one training pod to the operator, of the pod's name and owned by it. A pod can write its "
         "own only.",
         ReportSpec, None, (
             Column("Kind", "string", ".spec.kind"), Column("Index", "integer", ".spec.index"),
             Column("Incarnation", "integer", ".spec.incarnation"),
             Column("Generation", "integer", ".spec.generation"),
             Column("Step", "integer", ".spec.progress.step"),
             Column("Reason", "string", ".spec.failure.reason", wide=True), _AGE)),
    Kind("NodeDevices", "nodedevices",
         "The accelerators of one node: what they are, how they are, who has them. Of the node's name and owned by it; "
         "written by the node's agent, orders excepted.",
         NodeDevicesSpec, NodeDevicesStatus, (
             Column("Model", "string", ".spec.model", description="Decides which devices may be used together."),
             Column("Healthy", "string", ".status.healthy", description="Healthy of all."),
             Column("Free", "string", ".status.free", description="Healthy and free, by ring."),
             Column("Worst fault", "string", ".status.worst", description="Device, level and code."),
             Column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].reason",
                    description="Whether health is known, or why not."),
             _AGE,
             Column("Resource", "string", ".spec.resource", wide=True),
             Column("Super-pod", "string", ".spec.superPod", wide=True),
             Column("Rack", "string", ".spec.rack", wide=True),
             Column("Backend", "string", ".spec.backend", wide=True)),
         short_names=("nd",), scope="Cluster"),
)
