"""Carries out what was planned. Every write has a precondition: a name, a resource version or a UID."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby

from trainyard.build import JobRef, RenderedJob, pod, pod_name, world
from trainyard.controller.admission import FIELD_MANAGER
from trainyard.controller.cluster import OURS, Cluster
from trainyard.controller.metrics import Metrics
from trainyard.controller.queue import Conflict, NotYet
from trainyard.kube.client import ApiError, Client, NotLeading, Object
from trainyard.kube.paths import path_of
from trainyard.kube.views import JobView
from trainyard.plan.types import Action, Admit, CreatePod, DeleteJob, DeletePod, PutWorld

log = logging.getLogger(__name__)

_FEWEST, _FIRST, _MOST = 4, 16, 64  # requests at a time for the pods of one job
_QUICK, _SLOW = 0.5, 1.0  # s until the answer
# The trial at admission was decoded strictly; doing it again costs the API server a third of the decoding.
_AS_TRIED = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Ignore"}
_SIDE_BY_SIDE = (CreatePod, DeletePod)


class NameInUse(Conflict):
    """A pod of somebody else's has the name of a pod of this job."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(f"pod {name} exists and belongs to {owner}")
        self.name = name


class Applier:
    """Actions of one job, in order, neighbouring creations and deletions of pods side by side."""

    def __init__(self, client: Client, cluster: Cluster, metrics: Metrics) -> None:
        self._client = client
        self._cluster = cluster
        self._metrics = metrics

    async def apply(self, job: JobView, rendered: RenderedJob | None, actions: Sequence[Action]) -> None:
        """All of them, or raises at the first that fails: Conflict when something is not as it was read, NotLeading,
        ApiError."""
        for kind, group in groupby(actions, key=type):
            jobs = [self._one(job, rendered, action) for action in group]
            if kind in _SIDE_BY_SIDE:
                await _side_by_side(jobs)
            else:
                for one in jobs:
                    await one()
            self._metrics.actions.labels(kind.__name__).inc(len(jobs))

    def _one(self, job: JobView, rendered: RenderedJob | None, action: Action) -> Callable[[], Awaitable[None]]:
        match action:
            case CreatePod():
                if rendered is None:
                    raise Conflict("pods are planned, but what they are made from is not known yet")
                made, ready = action, rendered
                return lambda: self._create(job, ready, made)
            case DeletePod():
                gone = action
                return lambda: self._delete(job, gone)
            case PutWorld():
                put = action
                return lambda: self._put_world(job, put)
            case DeleteJob():
                return lambda: self._delete_job(job)
            case Admit():
                raise TypeError("Admit is carried out before anything else, not here")

    async def _create(self, job: JobView, rendered: RenderedJob, action: CreatePod) -> None:
        wanted = pod(rendered, action.index, action.incarnation, action.node)
        path, name = path_of(wanted)
        key = f"{job.namespace}/{name}"
        try:
            try:
                raw = await self._client.write("POST", path, wanted, query=_AS_TRIED)
                log.info("created pod %s", name, extra={"node": action.node})
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                raw = await self._ours(job, wanted, path, name)
            self._cluster.pods.put(raw)
        finally:  # from here on the watch cache knows it, or it does not exist
            self._cluster.ledger.dismiss([key])

    async def _ours(self, job: JobView, wanted: Object, path: str, name: str) -> Object:
        """The pod that has the name, if it is the one that was wanted: same job UID, same index and incarnation."""
        try:
            found = await self._client.get(f"{path}/{name}")
        except ApiError as error:
            if error.not_found:
                raise Conflict(f"pod {name} was there and is gone again") from error
            raise
        owners = found["metadata"].get("ownerReferences") or ()
        labels = found["metadata"].get("labels") or {}
        same = all(labels.get(name) == value for name, value in wanted["metadata"]["labels"].items()
                   if name.startswith("trainyard.dev/"))
        if same and any(owner.get("uid") == job.uid for owner in owners):
            return found
        raise NameInUse(name, ", ".join(f"{o['kind']} {o['name']} ({o['uid']})" for o in owners) or "nobody")

    async def _delete(self, job: JobView, action: DeletePod) -> None:
        path = f"/api/v1/namespaces/{job.namespace}/pods/{action.name}"
        key = f"{job.namespace}/{action.name}"
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": action.uid}}
        if action.grace_seconds is not None:
            body["gracePeriodSeconds"] = action.grace_seconds
        try:
            raw = await self._client.write("DELETE", path, body)
        except ApiError as error:
            if error.not_found:
                self._cluster.pods.forget(key)
                return
            if error.conflict:
                await self._look(path, key)
                raise Conflict(f"pod {action.name} is not the one that was to be deleted") from error
            raise
        log.info("deleted pod %s", action.name)
        if raw.get("kind") == "Pod" and raw["metadata"].get("deletionTimestamp"):
            self._cluster.pods.put(raw)

    async def _look(self, path: str, key: str) -> None:
        """Take in what the API server has under that name now."""
        try:
            self._cluster.pods.put(await self._client.get(path))
        except ApiError as error:
            if not error.not_found:
                raise
            self._cluster.pods.forget(key)

    async def _put_world(self, job: JobView, action: PutWorld) -> None:
        wanted = world(JobRef(job.namespace, job.name, job.uid), action.spec, action.resource_version)
        path, name = path_of(wanted)
        query = {"fieldManager": FIELD_MANAGER}
        try:
            if action.resource_version is None:
                raw = await self._client.write("POST", path, wanted, query=query)
            else:
                raw = await self._client.write("PUT", f"{path}/{name}", wanted, query=query)
        except ApiError as error:
            if error.not_found and action.resource_version is not None:
                self._cluster.worlds.forget(job.key)
                raise Conflict("the World is gone") from error
            if error.conflict:
                await self._read_world(job, f"{path}/{name}")
                there = self._cluster.worlds.get(job.key)
                if there and there.spec.job != job.uid:
                    raise NotYet("the World of an earlier job of this name is still there") from error
                raise Conflict(f"the World was changed meanwhile: {error.message}") from error
            raise
        log.info("world generation %d, %s", action.spec.generation, action.spec.phase,
                 extra={"generation": action.spec.generation, "cause": action.spec.cause.kind})
        self._cluster.worlds.put(raw)

    async def _read_world(self, job: JobView, path: str) -> None:
        try:
            raw = await self._client.get(path)
        except ApiError as error:
            if not error.not_found:
                raise
            self._cluster.worlds.forget(job.key)
            return
        self._cluster.worlds.put(raw)

    async def _delete_job(self, job: JobView) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                "preconditions": {"uid": job.uid}}
        try:
            await self._client.write("DELETE", f"{OURS}/namespaces/{job.namespace}/trainingjobs/{job.name}", body)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise
        log.info("deleted the job: ttlSecondsAfterFinished is over")


def planned_pods(job: JobView, actions: Sequence[Action]) -> dict[str, str]:
    """Pod key to node, of the pods that are to be created at a place."""
    ref = JobRef(job.namespace, job.name, job.uid)
    return {f"{job.namespace}/{pod_name(ref, action.index, action.incarnation)}": action.node
            for action in actions if isinstance(action, CreatePod) and action.node}


async def _side_by_side(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """All of them, as many at a time as the API server answers quickly; then raises the gravest of what went wrong. The
    lease is renewed at the same server: requests that pile up there would cost it."""
    waiting, flying, failed, width = deque(jobs), set[asyncio.Task[float]](), list[BaseException](), _FIRST
    try:
        while waiting or flying:
            while waiting and len(flying) < width:
                flying.add(asyncio.create_task(_seconds(waiting.popleft())))
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if error := task.exception():
                    failed.append(error)
                width = _width(width, float("inf") if error else task.result())
            if any(isinstance(error, NotLeading) for error in failed):
                waiting.clear()
    finally:  # cancelled: whoever leads next must find nothing of this under way
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
    for kind in (NotLeading, ApiError, NameInUse, Conflict, BaseException):
        for error in failed:
            if isinstance(error, kind):
                raise error


async def _seconds(job: Callable[[], Awaitable[None]]) -> float:
    begun = time.monotonic()
    await job()
    return time.monotonic() - begun


def _width(width: int, seconds: float) -> int:
    """How many may be under way after one was answered within `seconds`: twice as many a round while that is quick."""
    return min(width + 1, _MOST) if seconds < _QUICK else max(width - 1, _FEWEST) if seconds > _SLOW else width
