"""One job: read, plan, apply, write the status once, then the events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from trainyard.api import CONTROLLER_NAME
from trainyard.api.job import TrainingJobSpec
from trainyard.build import BuildSettings, RenderedJob
from trainyard.controller import snapshot
from trainyard.controller.admission import admit, classify, load
from trainyard.controller.apply import Applier, NameInUse, planned_pods
from trainyard.controller.cluster import OURS, Cluster
from trainyard.controller.events import Events, subject
from trainyard.controller.metrics import Metrics
from trainyard.controller.queue import Conflict
from trainyard.controller.snapshot import Memory
from trainyard.controller.status import read_status
from trainyard.controller.waiting import Waitlist
from trainyard.kube.client import JSON_PATCH, ApiError, Client
from trainyard.kube.views import JobView
from trainyard.plan.types import Admit, CreatePod, Plan, Refusal, Settings, Snapshot

log = logging.getLogger(__name__)

_POD_SECONDS, _LONGEST_SECONDS = 0.03, 270.0  # more for each pod; never as long as what --stuck-seconds calls stuck
_SECONDS = 120.0  # a reconcile that takes longer is broken off and tried again
_STRANGER_SECONDS = 20.0  # until a taken name is tried again
_CHEAP_SECONDS = 0.003  # of CPU
_REST, _LONGEST_REST = 10.0, 1.0  # of what a look took; seconds
_ADMISSIONS = 2  # in one reconcile: a second one only if a refusal had just run out


class Reconciler:
    """Brings jobs to where they should be, one key at a time (the queue sees to that)."""

    def __init__(self, client: Client, cluster: Cluster, waitlist: Waitlist, metrics: Metrics, events: Events, *,
                 plan: Callable[[Snapshot], Plan], build: BuildSettings, settings: Settings) -> None:
        self._client = client
        self._cluster = cluster
        self._waitlist = waitlist
        self._metrics = metrics
        self._events = events
        self._applier = Applier(client, cluster, metrics)
        self._plan = plan
        self._build = build
        self._settings = settings
        self._memories: dict[str, Memory] = {}

    async def reconcile(self, key: str) -> float | None:
        """Seconds after which the job wants to be looked at again; None: when something changes. Raises Conflict,
        NotLeading, ApiError, TimeoutError."""
        begun, result = time.monotonic(), "error"
        try:
            async with asyncio.timeout(self._limit(key)):
                again = await self._reconcile(key)
            result = "ok"
            return again
        except Conflict:
            result = "conflict"
            raise
        finally:
            self._metrics.reconcile_seconds.labels(result).observe(time.monotonic() - begun)

    async def _reconcile(self, key: str) -> float | None:
        job = self._cluster.jobs.get(key)
        if job is None or job.deleting or foreign(job):
            self._forget(key)  # what a deleted job owns is the garbage collector's
            return None
        memory = self._memories.get(key)
        if memory is None or memory.uid != job.uid:
            memory = self._memories[key] = Memory(job.uid)
        rendered = await self._rendered(job, memory)
        for _ in range(_ADMISSIONS + 1):
            plan, assumed = self._judge(job, memory, rendered)
            if not any(isinstance(action, Admit) for action in plan.actions):
                break
            rendered = await self._admit(job, memory)
        else:
            raise RuntimeError(f"the plan asked for admission {_ADMISSIONS + 1} times in a row")
        try:
            if plan.actions:
                await self._still_there(job)
            await self._act(job, memory, rendered, plan)
        finally:  # whatever was not created gives its place back
            self._cluster.ledger.dismiss(assumed)
            if self._cluster.promised.pop(key, None) and self._cluster.quotas_in(job.namespace):
                self._cluster.capacity()
        await self._finish(job, plan)
        return plan.requeue_after

    def _judge(self, job: JobView, memory: Memory, rendered: RenderedJob | None) -> tuple[Plan, list[str]]:
        """The plan, with its pods entered in the books before any other job is planned: nothing here awaits."""
        ahead = self._waitlist.ahead(job.key, self._cluster.priority(job), snapshot.waiting_since(job))
        began = time.thread_time()
        snap = snapshot.take(self._cluster, job, memory, rendered=rendered, ahead=ahead, settings=self._settings,
                             preemptor=self._waitlist.preemptor(job.key))
        begun = time.perf_counter()
        plan = self._plan(snap)
        self._metrics.plan_seconds.observe(time.perf_counter() - begun)
        places = planned_pods(job, plan.actions)
        if snap.rendering:
            for pod, node in places.items():
                self._cluster.ledger.assume(pod, node, snap.rendering.demand.requests)
            if count := sum(isinstance(action, CreatePod) for action in plan.actions):
                self._cluster.promised[job.key] = (job.namespace, snap.rendering.demand, count)
        self._waitlist.note(job.key, plan.waiting)
        memory.judged_seconds = time.thread_time() - began
        return plan, list(places)

    def _limit(self, key: str) -> float:
        """Seconds that a reconcile may take: making thousands of pods takes minutes on a slow API server."""
        job = self._cluster.jobs.get(key)
        nodes = job.spec.get("numNodes") if job else 0
        return min(_SECONDS + _POD_SECONDS * (nodes if isinstance(nodes, int) else 0), _LONGEST_SECONDS)

    def pace(self, key: str) -> float:
        """Seconds that a job rests before it is looked at again for something that nobody waits for: none for most;
        0.1 s for a gang of some 500 pods, up to 1 s for thousands. Else a gang that comes up is looked at after every
        pod, and what that and its status cost the API server and this process makes the other pods come up later."""
        memory = self._memories.get(key)
        cost = memory.judged_seconds if memory else 0.0
        return 0.0 if cost < _CHEAP_SECONDS else min(_REST * cost, _LONGEST_REST)

    async def _rendered(self, job: JobView, memory: Memory) -> RenderedJob | None:
        """What the pods are made from, if the status says that the job was admitted."""
        name = job.status.get("rendered")
        if not name:
            return None
        if memory.rendered is None or memory.rendered.name != name:
            memory.rendered = await load(self._client, job, name)
        return memory.rendered

    async def _admit(self, job: JobView, memory: Memory) -> RenderedJob | None:
        spec, _ = snapshot.parse_spec(job, memory)
        if spec is None:
            raise RuntimeError("the plan asked for the admission of a spec that does not validate")
        await self._still_there(job)
        answer = await admit(self._client, job, spec, self._build, device_model(self._cluster, spec))
        if isinstance(answer, Refusal):
            memory.refusal = answer
            return None
        memory.refusal, memory.rendered = None, answer
        return answer

    async def _still_there(self, job: JobView) -> None:
        """Before anything is made: the job as the API server has it now. A cache may have missed its deletion."""
        path = f"{OURS}/namespaces/{job.namespace}/trainingjobs/{job.name}"
        try:
            raw = await self._client.get(path)
        except ApiError as error:
            if error.not_found:
                self._cluster.jobs.forget(job.key)
                raise Conflict("the job is gone") from error
            raise
        self._cluster.jobs.put(raw)
        metadata = raw["metadata"]
        if (metadata["uid"], metadata.get("generation"), bool(metadata.get("deletionTimestamp"))) != (
                job.uid, job.generation, job.deleting):
            raise Conflict("the job was changed meanwhile")

    async def _act(self, job: JobView, memory: Memory, rendered: RenderedJob | None, plan: Plan) -> None:
        try:
            await self._applier.apply(job, rendered, plan.actions)
        except NameInUse as taken:
            memory.strangers[taken.name] = time.monotonic() + _STRANGER_SECONDS
            raise
        except ApiError as error:
            if not error.transient and not error.conflict:  # nobody would see it otherwise: the status is not written
                reason, _ = classify(error)
                await self._events.send(subject(job), "Warning", f"Failed{reason}" if reason == "QuotaExceeded" else
                                        "FailedApply", f"The API server says: {error.message}")
            raise

    async def _finish(self, job: JobView, plan: Plan) -> None:
        before = read_status(job.status)[0].dump()
        after = plan.status.dump()
        if after != before:
            await self._write_status(job, after)
        self._metrics.count_plan(plan.metrics)
        for event in plan.events:
            await self._events.send(subject(job), event.type, event.reason, event.message)

    async def _write_status(self, job: JobView, status: dict[str, object]) -> None:
        """Replace the status of exactly the object that was judged: the patch carries its resource version."""
        path = f"{OURS}/namespaces/{job.namespace}/trainingjobs/{job.name}/status"
        known = self._cluster.jobs.get(job.key)
        version = known.version if known and _same_but_status(known, job) else job.version
        patch = [{"op": "replace", "path": "/metadata/resourceVersion", "value": version},
                 {"op": "add", "path": "/status", "value": status}]
        try:
            raw = await self._client.write("PATCH", path, patch, content_type=JSON_PATCH,
                                           query={"fieldManager": "trainyard-operator"})
        except ApiError as error:
            if error.not_found:
                self._cluster.jobs.forget(job.key)
                return
            if error.conflict:
                raise Conflict(f"the status was not written, the job was changed meanwhile: {error.message}") from error
            raise
        self._cluster.jobs.put(raw)

    def forget_all(self) -> None:
        """Forget what was remembered of all jobs; only while none is being reconciled."""
        self._memories.clear()
        self._waitlist.clear()

    def _forget(self, key: str) -> None:
        self._memories.pop(key, None)
        self._waitlist.note(key, None)


def device_model(cluster: Cluster, spec: TrainingJobSpec) -> str:
    """The model of the job's devices as the nodes' agents tell it; of several the one that most nodes have."""
    if spec.devices is None:
        return ""
    found = Counter(view.devices.model for view in cluster.node_views.values()
                    if view.devices and view.devices.resource == spec.devices.resource)  # fmt: skip
    return found.most_common(1)[0][0] if found else ""


def foreign(job: JobView) -> bool:
    """Whether another controller looks after this job (spec.managedBy)."""
    return job.spec.get("managedBy") not in (None, CONTROLLER_NAME)


def _same_but_status(one: JobView, other: JobView) -> bool:
    """Whether both are the same object with the same spec and status; only metadata may differ."""
    return (one.uid, one.generation, one.deleting, one.status) == (
        other.uid, other.generation, other.deleting, other.status)
