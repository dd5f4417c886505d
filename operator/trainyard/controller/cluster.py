"""What this operator knows of the cluster: a watch cache a kind, and who is to look again when something changes."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from trainyard.api import AGENT_SELECTOR, API_VERSION, JOB_LABEL
from trainyard.controller.clock import WallClock, set_right
from trainyard.controller.ledger import Ledger
from trainyard.fleet.devices import Accelerators, devices_view
from trainyard.kube import views
from trainyard.kube.client import Client, Object
from trainyard.kube.devices import accelerators
from trainyard.kube.views import AgentPod, JobView, Node, OwnedReport, OwnPod, PriorityClass, RawQuota, Usage
from trainyard.kube.watch import Store, Watch, list_pages
from trainyard.placement.books import Demand, NodeView
from trainyard.plan.types import World

log = logging.getLogger(__name__)

T = TypeVar("T")
OURS = f"/apis/{API_VERSION}"
_BOUND = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"


class Cluster:
    """Caches and indices. `wake(key)` is called for a job that something happened to, `later(key)` for one that merely
    goes its way, `capacity()` when places may have come free."""

    def __init__(self, client: Client, namespaces: Collection[str] = (), *, relist_seconds: float = 300.0) -> None:
        self.wake: Callable[[str], None] = lambda key: None
        self.later: Callable[[str], None] = lambda key: self.wake(key)
        self.capacity: Callable[[], None] = lambda: None
        self.fleet: Callable[[], None] = lambda: None  # health, orders or an agent's word have changed somewhere
        self.ledger = Ledger()
        self.promised: dict[str, tuple[str, Demand, int]] = {}  # job key: namespace, demand, pods being created now
        self.led_since: datetime | None = None  # when this operator last began to lead; what came before is hearsay
        self.clock = WallClock()
        self._clock_set: datetime | None = None  # when it was last set
        self._client = client
        self._namespaces = frozenset(namespaces)
        self.jobs: Store[JobView] = Store(self._served(views.job_view))
        self.pods: Store[OwnPod] = Store(self._served(views.own_pod))
        self.reports: Store[OwnedReport] = Store(self._served(views.report))
        self.worlds: Store[World] = Store(self._served(views.world))
        self.quotas: Store[RawQuota] = Store(self._served(views.quota))
        self.bound: Store[Usage] = Store(views.usage)  # of other pods
        self.bound_here: Store[Usage] = Store(views.usage)  # of pods with our label, whoever put it there
        self.nodes: Store[Node] = Store(views.node)
        self.classes: Store[PriorityClass] = Store(views.priority_class)
        self.devices: Store[Accelerators] = Store(accelerators)
        self.agents: Store[AgentPod] = Store(views.agent_pod)
        self.node_views: dict[str, NodeView] = {}  # by name: what Books wants
        self._pods_of: defaultdict[str, set[str]] = defaultdict(set)  # job key to pod keys
        self._pods_on: defaultdict[str, set[str]] = defaultdict(set)  # node to keys of our pods
        self._agents_on: defaultdict[str, set[str]] = defaultdict(set)  # node to keys of the agent's pods
        self._reports_of: defaultdict[str, set[str]] = defaultdict(set)  # job UID to report keys
        self._quotas_in: defaultdict[str, set[str]] = defaultdict(set)  # namespace to quota keys
        self._key_of: dict[str, str] = {}  # job UID to job key

        def watch(name: str, path: str, store: Store[Any], also: Store[Any] | None = None, **query: str) -> Watch[Any]:
            return Watch(client, name, path, store, query, also=also, relist_seconds=relist_seconds)

        self.watches = [
            watch("nodes", "/api/v1/nodes", self.nodes),
            # Each pod in one watch only: a gang has thousands, each of several kilobytes, and each changes often.
            watch("bound pods", "/api/v1/pods", self.bound, fieldSelector=_BOUND, labelSelector=f"!{JOB_LABEL}"),
            watch("training pods", "/api/v1/pods", self.pods, self.bound_here, labelSelector=JOB_LABEL),
            watch("worlds", f"{OURS}/worlds", self.worlds),
            watch("reports", f"{OURS}/reports", self.reports),
            watch("quotas", "/api/v1/resourcequotas", self.quotas),
            watch("priority classes", "/apis/scheduling.k8s.io/v1/priorityclasses", self.classes),
            watch("devices", f"{OURS}/nodedevices", self.devices),
            watch("agents", "/api/v1/pods", self.agents, labelSelector=AGENT_SELECTOR),
        ]
        self._listen()

    @property
    def heard_since(self) -> datetime | None:
        """Since when reports have been heard without a break; None: from the start."""
        breaks = [watch.broken_at for watch in self.watches if watch.store is self.reports and watch.broken_at]
        return max([*breaks, *(at for at in (self.led_since, self._clock_set) if at)], default=None)

    def now(self) -> datetime:
        """The moment, by this machine's clock. If that was set, nothing seems to have taken longer for it, or to lie
        ahead: what was read from it is moved along. Moments in statuses are not; since then is all that counts there,
        see heard_since."""
        now, by = self.clock.look()
        if by:
            log.warning("this machine's clock was set by %+.1f s, or stood still", by.total_seconds())
            self._clock_set = now
            self.led_since = set_right(self.led_since, by, now) if self.led_since else None
            for watch in self.watches:
                watch.broken_at = set_right(watch.broken_at, by, now) if watch.broken_at else None
            self.reports.revise(lambda one: replace(one, report=replace(
                one.report, received=set_right(one.report.received, by, now))))
        return now

    def serves(self, namespace: str) -> bool:
        """Whether jobs of this namespace are looked after."""
        return not self._namespaces or namespace in self._namespaces

    def _served(self, project: Callable[[Object, T | None], T | None]) -> Callable[[Object, T | None], T | None]:
        return lambda raw, old: project(raw, old) if self.serves(raw["metadata"]["namespace"]) else None

    async def run(self) -> None:
        """Keep all caches up to date until cancelled. TrainingJobs are kopf's (see jobs.py)."""
        async with asyncio.TaskGroup() as group:
            for watch in self.watches:
                group.create_task(watch.run(), name=f"watch {watch.name}")

    async def fresh(self) -> None:
        """Return when the caches hold what the API server has now (10 s at most): what another leader wrote while this
        operator could hear nothing must not look like something that is missing."""
        await asyncio.gather(*(watch.fresh(10.0) for watch in self.watches))

    def nudge(self) -> None:
        """The API server is known to answer: watches that wait for their next attempt make it now."""
        for watch in self.watches:
            watch.nudge()

    async def resync(self) -> int:
        """List all TrainingJobs, take in what a watch may have missed, and look at every job again; returns how many
        deletions had been missed. Raises ApiError."""
        listed: list[Object] = []
        version = await list_pages(self._client, f"{OURS}/trainingjobs", {}, listed.append)
        missed = self.jobs.replace(listed, version)
        for key in self.in_order():
            self.wake(key)
        return missed

    def in_order(self) -> list[str]:
        """Keys of all jobs, the order in which they would be given places: priority, then age."""
        return [key for key, job in sorted(self.jobs, key=lambda item: (-self.priority(item[1]), item[1].created))]

    def pods_of(self, job: JobView) -> list[OwnPod]:
        """All pods with this job's name, of this UID or another."""
        return [pod for key in self._pods_of.get(job.key, ()) if (pod := self.pods.get(key))]

    def reports_of(self, job: JobView) -> list[OwnedReport]:
        """All reports with this job's UID."""
        return [report for key in self._reports_of.get(job.uid, ()) if (report := self.reports.get(key))]

    def quotas_in(self, namespace: str) -> list[RawQuota]:
        """Quotas of a namespace."""
        return [quota for key in sorted(self._quotas_in.get(namespace, ())) if (quota := self.quotas.get(key))]

    def priority(self, job: JobView) -> int:
        """Value of the job's priority class, else of the cluster's default, else 0."""
        found = self._class(job)
        return found.value if found else 0

    def preempts(self, job: JobView) -> bool:
        """Whether its priority class lets the job take the places of others."""
        found = self._class(job)
        return found is None or found.preempts

    def _class(self, job: JobView) -> PriorityClass | None:
        name = job.spec.get("priorityClassName")
        named = self.classes.get(name) if isinstance(name, str) else None
        return named or next((known for _, known in self.classes if known.default), None)

    def _listen(self) -> None:
        self.jobs.listen(self._job_changed)
        self.pods.listen(self._pod_changed)
        self.reports.listen(self._report_changed)
        self.worlds.listen(lambda key, old, new: self.wake(key))
        self.bound.listen(self._bound_changed)
        self.bound_here.listen(self._bound_changed)
        self.nodes.listen(self._node_changed)
        self.devices.listen(self._devices_changed)
        self.agents.listen(self._agent_changed)
        self.quotas.listen(self._quota_changed)

    def _job_changed(self, key: str, old: JobView | None, new: JobView | None) -> None:
        if old and (new is None or new.uid != old.uid):
            self._key_of.pop(old.uid, None)
        if new:
            self._key_of[new.uid] = key
            if new.status.get("deviceFaults") != (old.status.get("deviceFaults") if old else None):
                self.fleet()
        same = old and new and (old.uid, old.generation, old.deleting) == (new.uid, new.generation, new.deleting)
        (self.later if same else self.wake)(key)  # a status is mostly this operator's own word

    def _pod_changed(self, key: str, old: OwnPod | None, new: OwnPod | None) -> None:
        for pod, change in ((old, set.discard), (new, set.add)):
            if pod:
                job = f"{pod.namespace}/{pod.job}"
                _index(self._pods_of, job, key, change)
                if pod.view.node:
                    _index(self._pods_on, pod.view.node, key, change)
        self.ledger.own(key, new)
        if old and (new is None or new.view.finished):
            self.capacity()
        if changed := new or old:
            (self.later if _comes_up(old, new) else self.wake)(f"{changed.namespace}/{changed.job}")

    def _report_changed(self, key: str, old: OwnedReport | None, new: OwnedReport | None) -> None:
        for report, change in ((old, set.discard), (new, set.add)):
            if report:
                _index(self._reports_of, report.report.spec.job, key, change)
        if (changed := new or old) and (job := self._key_of.get(changed.report.spec.job)):
            self.wake(job)

    def _bound_changed(self, key: str, old: Usage | None, new: Usage | None) -> None:
        # A pod that gets or loses our label goes from one store to the other, and either may be told first.
        self.ledger.bound(key, new or self.bound.get(key) or self.bound_here.get(key))
        if old and new is None:
            self.capacity()

    def _node_changed(self, name: str, old: Node | None, new: Node | None) -> None:
        self._look_at_node(name)
        self._wake_on(name)
        if new is None or old is None or new.accelerators != old.accelerators:
            self.fleet()

    def _devices_changed(self, name: str, old: Accelerators | None, new: Accelerators | None) -> None:
        self._look_at_node(name)
        if _health(old) != _health(new):
            self._wake_on(name)
            self.fleet()

    def _agent_changed(self, key: str, old: AgentPod | None, new: AgentPod | None) -> None:
        for pod, change in ((old, set.discard), (new, set.add)):
            if pod:
                _index(self._agents_on, pod.node, key, change)
        for node in {pod.node for pod in (old, new) if pod}:
            self._look_at_node(node)
        self.fleet()

    def agent_ready(self, node: str) -> bool | None:
        """Whether the agent on this node is Ready; None: no pod of it is there."""
        found = [pod.ready for key in self._agents_on.get(node, ()) if (pod := self.agents.get(key))]
        return any(found) if found else None

    def _look_at_node(self, name: str) -> None:
        """Put together what placement reads of a node, from three sources that change by themselves."""
        before, node, told = self.node_views.pop(name, None), self.nodes.get(name), self.devices.get(name)
        if node is None:
            return
        view = node.view
        if told:
            view = replace(view, devices=devices_view(told, view.allocatable, self.agent_ready(name)))
        self.node_views[name] = view
        if _trouble(before) != _trouble(view):
            self.fleet()
        if before is None or _gains(before, view):
            self.capacity()

    def _wake_on(self, node: str) -> None:
        """Look at the jobs that have pods on this node."""
        for key in self._pods_on.get(node, ()):
            if pod := self.pods.get(key):
                self.wake(f"{pod.namespace}/{pod.job}")

    def _quota_changed(self, key: str, old: RawQuota | None, new: RawQuota | None) -> None:
        if quota := new or old:
            _index(self._quotas_in, quota.namespace, key, set.add if new else set.discard)
        self.capacity()


def _comes_up(old: OwnPod | None, new: OwnPod | None) -> bool:
    """Whether a pod is merely made, bound or started; thousands of pods do that at once, and nobody waits for one."""
    if new is None or (old is not None and old.view.uid != new.view.uid):
        return False
    pod = new.view
    trouble = pod.ended or pod.deleting or pod.disruption or pod.oom or pod.failed_init
    return not trouble and all(device.health == "Healthy" for device in pod.devices)


def _health(told: Accelerators | None) -> object:
    """What recovery and the fleet look at: everything but who holds the devices."""
    if told is None:
        return None
    return replace(told, devices=tuple(replace(device, pod="") if device.pod else device for device in told.devices))


def _trouble(view: NodeView | None) -> str:
    """Why the health of a node's devices is not known; kubelet's own count is a part of that."""
    return view.devices.trouble if view and view.devices else ""


def _gains(before: NodeView, now: NodeView) -> bool:
    """Whether a node may have places now that it had not. Devices that are taken make none."""
    if before.devices is None or now.devices is None or replace(before, devices=None) != replace(now, devices=None):
        return before != now
    if before.devices.known != now.devices.known:
        return now.devices.known
    if before.devices.elsewhere and not now.devices.elsewhere:
        return True
    known = {device.id: device for device in before.devices.devices}
    return any(device.free and device != known.get(device.id) for device in now.devices.devices)


def _index(index: defaultdict[str, set[str]], of: str, key: str, change: Callable[[set[str], str], None]) -> None:
    """Add or remove `key`, and the whole entry once it is empty."""
    change(index[of], key)
    if not index[of]:
        del index[of]
