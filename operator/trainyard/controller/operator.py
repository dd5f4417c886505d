"""The whole operator, from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import time
from datetime import UTC, datetime

from trainyard import __version__
from trainyard.build import BuildSettings
from trainyard.controller.cluster import Cluster
from trainyard.controller.events import Events
from trainyard.controller.fleet import Fleet
from trainyard.controller.jobs import JobWatch
from trainyard.controller.metrics import Gauges, Metrics, device_gauges, training_ratio
from trainyard.controller.options import Options
from trainyard.controller.queue import WorkQueue
from trainyard.controller.reconcile import Reconciler, foreign
from trainyard.controller.schema import wait_for_crds
from trainyard.controller.server import serve
from trainyard.controller.waiting import Waitlist
from trainyard.kube.client import ApiError, Client, Object, load_configuration
from trainyard.kube.lease import LeadershipLost, Lease
from trainyard.kube.watch import key_of, version_of
from trainyard.plan import plan
from trainyard.plan.types import Settings

log = logging.getLogger(__name__)

_STALE_SECONDS = 420.0  # a watch ends itself after at most 360 s; a loop silent for longer is stuck
_DRAIN_SECONDS = 4.0  # what is in flight may end within this before the lease is given up
_JOBS_STALE_SECONDS = 60.0


class Operator:
    """Caches warm, health served; works while it leads."""

    def __init__(self, options: Options, client: Client, metrics: Metrics) -> None:
        self.options = options
        self.client = client
        # Connections of its own: the lease is renewed in time however many requests wait for theirs.
        self.lease_client = Client(client.configuration, observe=metrics.observe_request)
        self.metrics = metrics
        self.cluster = Cluster(client, options.namespaces, relist_seconds=options.resync_seconds)
        # A pod's name is its own, and its container starts again only when the one before has ended.
        mine = f"{options.identity}_" if options.identity == os.environ.get("POD_NAME") else ""
        self.lease = Lease(self.lease_client, options.lease_namespace, options.lease_name,
                           f"{options.identity}_{secrets.token_hex(4)}", predecessor=mine)
        build = BuildSettings(
            trainer_image=options.trainer_image, supervisor_image=options.supervisor_image,
            image_pull_policy=options.image_pull_policy, image_pull_secrets=options.image_pull_secrets,
            version=__version__)
        self.queue = WorkQueue(self._work, workers=options.workers)
        self.waitlist = Waitlist(self.queue)
        events = Events(client, options.identity)
        self.fleet = Fleet(client, self.cluster, events, quarantine_seconds=options.quarantine_seconds)
        self.reconciler = Reconciler(
            client, self.cluster, self.waitlist, metrics, events, plan=plan, build=build,
            settings=Settings(
                pod_gone_seconds=options.pod_gone_seconds, unready_node_seconds=options.unready_node_seconds,
                starvation_seconds=options.starvation_seconds, default_image=options.trainer_image))
        self.cluster.wake = self._wake
        self.cluster.later = self._later
        self.cluster.capacity = self.waitlist.capacity
        self.cluster.fleet = self.fleet.notice
        self.jobs: JobWatch | None = None
        self.leading = False
        self.synced = False
        self.missing: list[str] = ["starting"]  # what the CRDs lack
        self._added: dict[str, float] = {}  # when a key was first added, for the metric
        metrics.gauges(self._gauges)

    async def run(self, stop: asyncio.Event) -> int:
        """Exit code: 0 after `stop` was set, 1 when a part of the operator failed."""
        runner, port = await serve(self.options.host, self.options.port, self.metrics, self.unhealthy, self.unready)
        log.info("serving /metrics, /healthz and /readyz", extra={"port": port, "version": __version__})
        code = 0
        work = asyncio.create_task(self._run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done() and not stop.is_set():
            code = 1
            log.error("a part of the operator has failed", exc_info=work.exception())
        else:
            log.info("stopping")
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await work
        stopped.cancel()
        await runner.cleanup()
        await self.client.close()
        await self.lease_client.close()
        return code

    async def _run(self) -> None:
        await wait_for_crds(self.client, self._missing)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.cluster.run())
            self.jobs = JobWatch(self.client, self.options.namespaces, self._heard)
            self.jobs.start()
            for watch in self.cluster.watches:
                await watch.synced.wait()
            await self._list_jobs()
            self.synced = True
            log.info("caches filled", extra={"jobs": len(self.cluster.jobs), "nodes": len(self.cluster.nodes),
                                             "pods": len(self.cluster.bound) + len(self.cluster.bound_here)})
            group.create_task(self._resync())
            while True:
                await self._lead()

    async def _list_jobs(self) -> None:
        """Return when all TrainingJobs have been listed."""
        pause = 0.5
        while True:
            try:
                await self.cluster.resync()
                return
            except ApiError as error:
                log.warning("the list of TrainingJobs failed, trying again: %s", error)
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(pause * 2, 10.0)

    async def _lead(self) -> None:
        """Wait for the lease, work while it is held; returns when it is lost. By then nothing is in flight any more:
        the gate has been shut since before another could take over, and all workers have been cancelled."""
        if self.options.leader_election:
            self.client.gate = self.lease.seconds_left
            await self.lease.acquire()
        self.cluster.nudge()
        self.cluster.led_since = datetime.now(UTC)
        self.fleet.beat = time.monotonic()
        self.leading = True
        self.metrics.leader.set(1)
        try:
            async with asyncio.TaskGroup() as group:
                if self.options.leader_election:
                    group.create_task(self.lease.hold())
                await self.cluster.fresh()
                await self._list_jobs()
                group.create_task(self.waitlist.run())
                group.create_task(self.fleet.run())
                group.create_task(self._run_queue())
        except* LeadershipLost as lost:
            log.error("this operator leads no longer: %s", lost.exceptions[0])
        finally:
            self.leading = False
            self.queue.clear()
            self._added.clear()
            self.reconciler.forget_all()  # nobody tells a follower's reconciler which jobs are gone
            self.metrics.leader.set(0)
            if self.options.leader_election:
                await self.lease.release()

    async def _run_queue(self) -> None:
        """Run the workers; when the operator stops, let what is in flight end before it is cancelled."""
        work = asyncio.create_task(self.queue.run())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self.queue.pause()
            end = time.monotonic() + _DRAIN_SECONDS
            while self.queue.flying and time.monotonic() < end and self._may_write():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            raise

    def _may_write(self) -> bool:
        return not self.options.leader_election or self.lease.seconds_left() > 0

    async def _work(self, key: str) -> float | None:
        if (added := self._added.pop(key, None)) is not None:
            self.metrics.react_seconds.observe(time.monotonic() - added)
        return await self.reconciler.reconcile(key)

    def _wake(self, key: str) -> None:
        if self.leading:  # a follower has nothing to do; it looks at every job when it becomes the leader
            self._added.setdefault(key, time.monotonic())
            self.queue.add(key)

    def _later(self, key: str) -> None:
        """Soon, together with whatever else happens to the job meanwhile. A report never waits for that."""
        if (seconds := self.reconciler.pace(key)) <= 0:
            self._wake(key)
        elif self.leading:
            self.queue.add_soon(key, seconds)

    def _heard(self, kind: str | None, raw: Object) -> None:
        """A TrainingJob, from kopf."""
        if kind == "DELETED":
            self.cluster.jobs.drop(key_of(raw), version_of(raw))
        else:
            self.cluster.jobs.put(raw)

    def _missing(self, wrong: list[str]) -> None:
        self.missing = wrong

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.options.resync_seconds)
            try:
                if missed := await self.cluster.resync():
                    log.warning("the watch of TrainingJobs had missed %d deletions", missed)
            except ApiError as error:
                log.warning("the list of TrainingJobs failed: %s", error)

    def unready(self) -> list[str]:
        """Why this operator is not ready; empty when it is."""
        if self.missing:
            return self.missing
        wrong = [f"the cache of {watch.name} is not filled yet" for watch in self.cluster.watches
                 if not watch.synced.is_set()]
        return wrong or ([] if self.synced else ["the cache of TrainingJobs is not filled yet"])

    def unhealthy(self) -> list[str]:
        """What has stopped making progress; empty when nothing has. An API server that is away is no reason: a restart
        would not bring it back."""
        if self.missing:
            return []
        now = time.monotonic()
        wrong = [f"watch of {watch.name}: no sign of life for {now - watch.beat:.0f} s"
                 for watch in self.cluster.watches if now - watch.beat > _STALE_SECONDS]
        if self.jobs and now - self.jobs.beat > _JOBS_STALE_SECONDS:
            wrong.append(f"watch of TrainingJobs: no sign of life for {now - self.jobs.beat:.0f} s")
        seconds, key = self.queue.longest
        if seconds > self.options.stuck_seconds:
            wrong.append(f"job {key}: one reconcile has taken {seconds:.0f} s")
        if self.options.leader_election and self.synced and now - self.lease.beat > 30.0:
            wrong.append(f"leader election: no sign of life for {now - self.lease.beat:.0f} s")
        if self.leading and now - self.fleet.beat > _STALE_SECONDS:
            wrong.append(f"devices: not looked at for {now - self.fleet.beat:.0f} s")
        if self.leading and self.queue.stalled(self.options.stuck_seconds):
            wrong.append(f"{self.queue.depth} jobs wait and no worker takes one")
        return wrong

    def _gauges(self) -> Gauges:
        states: dict[str, float] = {}
        ratios: dict[tuple[str, ...], float] = {}
        for _, job in self.cluster.jobs:
            if foreign(job):
                continue
            state = str(job.status.get("state") or "Pending")
            states[state] = states.get(state, 0) + 1
            if (ratio := training_ratio(job.status, datetime.now(UTC))) is not None:
                ratios[job.namespace, job.name] = ratio
        watches = self.cluster.watches
        made: Gauges = {
            ("trainyard_jobs", "TrainingJobs by state.", "state"): states,
            ("trainyard_effective_training_ratio", "Part of a job's time since its first step that brought it further.",
             "namespace job"): ratios,
            ("trainyard_queue_depth", "Jobs that wait for a worker.", ""): {"": self.queue.depth},
            ("trainyard_queue_delayed", "Jobs that wait for a time.", ""): {"": self.queue.delayed},
            ("trainyard_queue_in_flight", "Jobs being reconciled.", ""): {"": self.queue.flying},
            ("trainyard_queue_longest_seconds", "Seconds of the longest reconcile in flight.", ""):
                {"": self.queue.longest[0]},
            ("trainyard_waiting_jobs", "Jobs that wait for places.", ""): {"": len(self.waitlist)},
            ("trainyard_assumed_pods", "Placed pods that are still to be created.", ""):
                {"": len(self.cluster.ledger.assumed)},
            ("trainyard_watch_silence_seconds", "Seconds since the API server was last heard.", "watch"):
                {watch.name: watch.lag for watch in watches},
            ("trainyard_watch_lists", "Full lists since the start.", "watch"):
                {watch.name: watch.relists for watch in watches},
            ("trainyard_watch_failures", "Broken watches since the start.", "watch"):
                {watch.name: watch.failures for watch in watches},
            ("trainyard_watch_missed_deletions", "Deletions that only a list showed.", "watch"):
                {watch.name: watch.missed for watch in watches},
            ("trainyard_cached_objects", "Objects in the caches.", "watch"):
                {watch.name: len(watch.store) for watch in watches} | {"jobs": len(self.cluster.jobs)},
        }
        return made | device_gauges((told for _, told in self.cluster.devices), self.fleet.withheld)


async def main(options: Options) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    client = Client(await load_configuration(options.kubeconfig), observe=metrics.observe_request)
    return await Operator(options, client, metrics).run(stop)

