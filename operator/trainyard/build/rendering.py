"""Renders a job once; every pod, replacements months later included, is made from that (docs/pods.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainyard.api import GROUP, TRAINER_CONTAINER
from trainyard.api.job import LayoutStatus, TrainingJobSpec
from trainyard.build.base import UNREACHABLE, base_template, supervisor_image
from trainyard.build.copies import copies_bytes, make_room
from trainyard.build.hashes import canonical, digest
from trainyard.build.merge import merge
from trainyard.build.owned import metadata
from trainyard.build.planning import as_written, plan_layout
from trainyard.build.template import CONFIG_VOLUME, ROOT, check_template, trainer_of
from trainyard.build.types import BuildSettings, InvalidTemplate, JobRef, Object, RenderedJob
from trainyard.placement.books import Demand

VERSION_LABEL = f"{GROUP}/version"
CANDIDATES = "candidates.json"
SUPERVISOR_ANNOTATION = f"{GROUP}/supervisor-image"


def render(job: JobRef, spec: TrainingJobSpec, settings: BuildSettings, device: str = "") -> RenderedJob:
    """What all pods of the job have in common. `device`: the model of its devices, if an agent told. Raises
    InvalidTemplate if there can be no such pod, InvalidLayout or LayoutDoesNotFit if the model cannot be laid out."""
    check_template(spec)
    template = merge(base_template(job, spec, settings), spec.template or {}, ROOT)
    pod = template["spec"]
    trainer = next(container for container in pod["containers"] if container["name"] == TRAINER_CONTAINER)
    if not trainer.get("image"):
        path, found = trainer_of(spec)
        what = f"{path}.image" if found else path
        raise InvalidTemplate(what, f"spec.command needs an image: give the container {TRAINER_CONTAINER} yours")
    _tolerate(pod)
    _relax(pod, trainer, spec)
    _drop_unused(pod)
    train, layout, state, candidates = plan_layout(spec, device)
    make_room(pod, spec, copies_bytes(spec, state))
    if candidates:
        _add_candidates(pod)
    image = supervisor_image(settings) if spec.command is not None else str(trainer["image"])
    rendered = RenderedJob(job, template, train.dump() if train else None, "", image, settings.version,
                           asked=as_written(spec.train) if spec.train else None, layout=layout,
                           candidates=[each.dump() for each in candidates] or None)
    return replace(rendered, hash=_hash(rendered))


def with_demand(rendered: RenderedJob, demand: Demand) -> RenderedJob:
    """The rendering, once it is known what the API server makes of such a pod."""
    rendered = replace(rendered, demand=demand)
    return replace(rendered, hash=_hash(rendered))


def rendering_configmap(rendered: RenderedJob) -> Object:
    """The immutable ConfigMap that keeps a rendering."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(
            rendered.job,
            rendered.name,
            labels={VERSION_LABEL: rendered.version} if rendered.version else {},
            annotations={SUPERVISOR_ANNOTATION: rendered.supervisor_image},
        ),
        "immutable": True,
        "data": _data(rendered),
    }


def read_rendering(configmap: Mapping[str, Any]) -> RenderedJob:
    """The rendering that a ConfigMap keeps. Raises ValueError if it is none, or not what its name says."""
    meta = configmap["metadata"]
    name, data = meta["name"], configmap.get("data") or {}
    try:
        owner = meta["ownerReferences"][0]
        rendered = RenderedJob(
            job=JobRef(meta["namespace"], owner["name"], owner["uid"]),
            template=json.loads(data["pod.json"]),
            train=json.loads(data["train.json"]) if "train.json" in data else None,
            hash=name.removeprefix(owner["name"] + "-"),
            supervisor_image=(meta.get("annotations") or {}).get(SUPERVISOR_ANNOTATION, ""),
            version=(meta.get("labels") or {}).get(VERSION_LABEL, ""),
            demand=_read_demand(json.loads(data["demand.json"])) if "demand.json" in data else None,
            asked=json.loads(data["asked.json"]) if "asked.json" in data else None,
            layout=LayoutStatus.model_validate_json(data["layout.json"]) if "layout.json" in data else None,
            candidates=json.loads(data[CANDIDATES]) if CANDIDATES in data else None,
        )
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"ConfigMap {name} holds no rendering: {error!r}") from error
    if _digest(data) != rendered.hash:
        raise ValueError(f"ConfigMap {name} was changed: its contents do not have the hash in its name")
    return rendered


def _tolerate(pod: Object) -> None:
    """Pods stay on a node that is out of reach until Trainyard decides otherwise, unless the template says how long."""
    tolerations = list(pod.get("tolerations") or [])
    for key in UNREACHABLE:
        said = any(t.get("key") in (key, None, "") and t.get("effect") in ("NoExecute", None, "") for t in tolerations)
        if not said:
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute"})
    pod["tolerations"] = tolerations


def _add_candidates(pod: Object) -> None:
    """The trainer finds them beside its configuration."""
    for volume in pod["volumes"]:
        if volume["name"] == CONFIG_VOLUME:
            volume["configMap"]["items"].append({"key": CANDIDATES, "path": CANDIDATES})


def _relax(pod: Object, trainer: Object, spec: TrainingJobSpec) -> None:
    """Takes back the defaults that contradict what the template asks for and would make the pod invalid."""
    asked_pod = ((spec.template or {}).get("spec") or {}).get("securityContext") or {}
    asked = trainer_of(spec)[1].get("securityContext") or {}
    if asked_pod.get("runAsUser") == 0 and "runAsNonRoot" not in asked_pod:
        pod["securityContext"].pop("runAsNonRoot", None)
    context = trainer.get("securityContext") or {}
    if asked.get("runAsUser") == 0 and "runAsNonRoot" not in asked:
        context["runAsNonRoot"] = False
    added = (asked.get("capabilities") or {}).get("add") or ()
    mighty = asked.get("privileged") or "SYS_ADMIN" in added or "CAP_SYS_ADMIN" in added
    if mighty and "allowPrivilegeEscalation" not in asked:
        context.pop("allowPrivilegeEscalation", None)


def _drop_unused(pod: Object) -> None:
    """Removes our own volumes that the template has put others in the place of."""
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    mounted = {mount.get("name") for container in containers for mount in container.get("volumeMounts") or ()}
    pod["volumes"] = [v for v in pod["volumes"] if v["name"] in mounted or not v["name"].startswith("trainyard-")]


def _data(rendered: RenderedJob) -> dict[str, str]:
    data = {"pod.json": canonical(rendered.template)}
    if rendered.train is not None:
        data["train.json"] = canonical(rendered.train)
    if rendered.asked is not None:
        data["asked.json"] = canonical(rendered.asked)
    if rendered.layout is not None:
        data["layout.json"] = canonical(rendered.layout.dump())
    if rendered.candidates is not None:
        data[CANDIDATES] = canonical(rendered.candidates)
    if rendered.demand is not None:
        data["demand.json"] = canonical(_write_demand(rendered.demand))
    return data


def _hash(rendered: RenderedJob) -> str:
    return _digest(_data(rendered))


def _digest(data: Mapping[str, str]) -> str:
    return digest(canonical(dict(data)), 10)


def _write_demand(demand: Demand) -> Object:
    return {
        "requests": dict(demand.requests),
        "limits": dict(demand.limits),
        "nodeSelector": dict(demand.node_selector),
        "affinity": dict(demand.affinity),
        "tolerations": [dict(toleration) for toleration in demand.tolerations],
        "apart": demand.apart,
        "priorityClass": demand.priority_class,
    }


def _read_demand(raw: Mapping[str, Any]) -> Demand:
    return Demand(
        requests=raw["requests"],
        limits=raw["limits"],
        node_selector=raw["nodeSelector"],
        affinity=raw["affinity"],
        tolerations=tuple(raw["tolerations"]),
        apart=raw.get("apart", ""),  # what was rendered before there was this says nothing of it
        priority_class=raw["priorityClass"],
    )
