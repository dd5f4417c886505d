"""Admit: what a job needs before its first pod, and one pod tried out at the API server."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from trainyard.api.job import TrainingJobSpec
from trainyard.build import (
    BuildSettings,
    InvalidTemplate,
    JobRef,
    RenderedJob,
    belongings,
    pod,
    read_rendering,
    render,
    rendering_configmap,
    with_demand,
)
from trainyard.controller.queue import NotYet
from trainyard.kube.client import APPLY, ApiError, Client, Object
from trainyard.kube.paths import path_of
from trainyard.kube.views import JobView
from trainyard.layout import InvalidLayout, LayoutDoesNotFit
from trainyard.placement.quantities import demand_of
from trainyard.plan.types import Refusal

log = logging.getLogger(__name__)

_MISSING = re.compile(r"serviceaccount .* not found|no PriorityClass with name .* was found|RuntimeClass .* not found")
FIELD_MANAGER = "trainyard-operator"


class NameTaken(Exception):
    """Something of somebody else's has a name that the job needs."""


async def admit(client: Client, job: JobView, spec: TrainingJobSpec, settings: BuildSettings,
                device: str = "") -> RenderedJob | Refusal:
    """The rendering, kept in its ConfigMap, or why there can be none. `device`: what the agents call the job's devices.
    Raises NotYet and transient ApiErrors."""
    ref = JobRef(job.namespace, job.name, job.uid)

    def refuse(reason: str, message: str, permanent: bool) -> Refusal:
        return Refusal(reason, message, permanent, job.generation, datetime.now(UTC))

    try:
        rendered = await asyncio.to_thread(render, ref, spec, settings, device)  # a large job is planned for a second
        await _ensure_all(client, belongings(ref, spec), job)
        rendered = with_demand(rendered, demand_of(await _try(client, rendered)))
        await ensure(client, rendering_configmap(rendered), job)
    except InvalidTemplate as error:
        return refuse("InvalidTemplate", str(error), True)
    except InvalidLayout as error:
        return refuse("InvalidLayout", f"spec.{error}", True)
    except LayoutDoesNotFit as error:
        return refuse("LayoutDoesNotFit", f"The model does not fit: {error}", True)
    except NameTaken as error:
        return refuse("NameTaken", str(error), False)
    except ApiError as error:
        if error.transient or error.not_found or error.conflict:  # a quota that many charge at once conflicts
            raise
        reason, permanent = classify(error)
        log.info("the API server refused the job's pod or what belongs to it: %s", error)
        return refuse(reason, f"The API server says: {error.message}", permanent)
    return rendered


def classify(error: ApiError) -> tuple[str, bool]:
    """Reason of a refusal, and whether only another manifest can help."""
    text = error.message
    if error.status == 403 and "exceeded quota" in text:
        return "QuotaExceeded", False
    if error.status == 403 and "is being terminated" in text:
        return "NamespaceTerminating", False
    if error.status in (401, 403) and "cannot" in text and "User \"" in text:
        return "OperatorForbidden", False  # the operator's own rights: a matter for whoever installed it
    if error.status == 403 and "failed quota" in text:
        return "QuotaExceeded", True  # a quota wants requests that the template does not state
    # A service account, priority or runtime class that the template names may be applied after the job.
    return "TemplateRefused", not (error.status == 403 and _MISSING.search(text))


async def load(client: Client, job: JobView, name: str) -> RenderedJob | None:
    """The rendering that the status names; None if it is gone or no good. Raises ApiError."""
    try:
        rendered = read_rendering(await client.get(f"/api/v1/namespaces/{job.namespace}/configmaps/{name}"))
    except ApiError as error:
        if error.not_found:
            log.warning("ConfigMap %s, from which the pods are made, is gone; the job is admitted again", name)
            return None
        raise
    except ValueError as error:
        log.error("%s; the job is admitted again", error)
        return None
    return rendered if rendered.job.uid == job.uid else None


async def ensure(client: Client, wanted: Object, job: JobView) -> None:
    """Make it, or bring the job's own one up to date. Raises NameTaken, NotYet and ApiError."""
    path, name = path_of(wanted)
    try:
        await client.write("POST", path, wanted, query={"fieldManager": FIELD_MANAGER})
        return
    except ApiError as error:
        if not error.conflict:
            raise
    found = await client.get(f"{path}/{name}")
    owners = found["metadata"].get("ownerReferences") or ()
    if any(owner.get("uid") == job.uid for owner in owners):
        # Another version of Trainyard made it, or the job was resumed with another service account.
        if any(found.get(part) != wanted[part] for part in ("spec", "subjects") if part in wanted):
            await client.write("PATCH", f"{path}/{name}", wanted, content_type=APPLY,
                               query={"fieldManager": FIELD_MANAGER, "force": "true"})
        return
    what = f"{wanted['kind']} {job.namespace}/{name}"
    if any(owner.get("kind") == "TrainingJob" and owner.get("name") == job.name for owner in owners):
        raise NotYet(f"{what} still belongs to an earlier job of this name")
    raise NameTaken(f"{what} exists and does not belong to this job; remove or rename it, or give the job another name")


async def _ensure_all(client: Client, wanted: Sequence[Object], job: JobView) -> None:
    """All of them side by side; then raises the first error, in their order."""
    for answer in await asyncio.gather(*(ensure(client, one, job) for one in wanted), return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer


async def _try(client: Client, rendered: RenderedJob) -> Object:
    """What the API server would make of a pod of this job. The trial has a name of its own, so that it collides with
    no pod."""
    trial = pod(rendered, 0, 1, None)
    name = trial["metadata"].pop("name")
    trial["metadata"]["generateName"] = f"{name}-"
    return await client.write("POST", path_of(trial)[0], trial,
                              query={"dryRun": "All", "fieldValidation": "Strict", "fieldManager": FIELD_MANAGER})
