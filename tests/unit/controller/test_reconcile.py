"""What is written, in which order, and what is not written when something has changed meanwhile."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trainyard.api.job import TrainingJobStatus
from trainyard.api.protocol import WorldSpec
from trainyard.build import BuildSettings, InvalidTemplate
from trainyard.controller import admission, apply
from trainyard.controller.admission import classify
from trainyard.controller.clock import WallClock
from trainyard.controller.cluster import OURS, Cluster
from trainyard.controller.events import Events
from trainyard.controller.metrics import Metrics
from trainyard.controller.queue import Conflict, NotYet, WorkQueue
from trainyard.controller.reconcile import Reconciler
from trainyard.controller.snapshot import Memory, take
from trainyard.controller.waiting import Waitlist
from trainyard.kube.client import ApiError, Client, NotLeading, Object
from trainyard.plan.types import Admit, CreatePod, DeletePod, Emit, Plan, PutWorld, Settings, Snapshot

JOB = f"{OURS}/namespaces/a/trainingjobs/j"
PODS = "/api/v1/namespaces/a/pods"
SPEC = {"numNodes": 2, "command": ["true"], "template": {"spec": {"containers": [
    {"name": "trainer", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}}}


class FakeApi(Client):
    """Objects by path; `trouble` maps "METHOD path" to the error that is answered instead, once."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.trouble: dict[str, ApiError] = {}
        self.writes: list[str] = []
        self.version = 100
        self.before: Callable[[str], None] = lambda what: None

    async def get(self, path: str, query: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Object:
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return copy.deepcopy(self.objects[path])

    async def write(self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None,
                    content_type: str = "", gated: bool = True, seconds: float | None = None) -> Object:
        what = f"{method} {path}"
        self.before(what)
        dry = bool(query and query.get("dryRun"))
        self.writes.append(f"{what} (dry)" if dry else what)
        if error := self.trouble.pop(what, None):
            raise error
        self.version += 1
        if method == "DELETE":
            return self.objects.pop(path, {})
        if method == "PATCH" and path.endswith("/status"):
            path = path.removesuffix("/status")
            if body[0]["value"] != self.objects[path]["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", "changed")
            made = {**self.objects[path], "status": body[1]["value"]}
        else:
            made = copy.deepcopy(body)
            made["metadata"].setdefault("name", "generated")
            made["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
            path = f"{path}/{made['metadata']['name']}" if method == "POST" else path
            if method == "POST" and path in self.objects:
                raise ApiError(409, "AlreadyExists", path)
        made = copy.deepcopy(made)
        made["metadata"]["resourceVersion"] = str(self.version)
        made["metadata"].setdefault("uid", f"u{self.version}")
        if not dry:
            self.objects[path] = made
        return made


class Bench:
    """A reconciler on the fake API, with plans as scripted."""

    def __init__(self, *plans: Plan) -> None:
        self.api = FakeApi()
        self.plans = list(plans)
        self.snapshots: list[Snapshot] = []
        self.cluster = Cluster(self.api)
        self.waitlist = Waitlist(WorkQueue(self._none))
        self.reconciler = Reconciler(
            self.api, self.cluster, self.waitlist, Metrics(), Events(self.api, "me"), plan=self._plan,
            build=BuildSettings(trainer_image="t"), settings=Settings())
        self.put_job()

    async def _none(self, key: str) -> float | None:
        return None

    def _plan(self, snap: Snapshot) -> Plan:
        self.snapshots.append(snap)
        return self.plans.pop(0)

    def put_job(self, **metadata: Any) -> None:
        self.api.version += 1
        old = self.api.objects.get(JOB, {})
        self.api.objects[JOB] = raw = {
            "metadata": {"namespace": "a", "name": "j", "uid": "ju", "generation": 1,
                         "creationTimestamp": "2026-01-01T00:00:00Z"} | metadata,
            "spec": SPEC, "status": old.get("status", {})}
        raw["metadata"]["resourceVersion"] = str(self.api.version)
        if not metadata:
            self.cluster.jobs.put(raw)

    async def run(self) -> float | None:
        return await self.reconciler.reconcile("a/j")

    def wrote(self, part: str) -> list[str]:
        return [write for write in self.api.writes if part in write]


def status(**fields: Any) -> TrainingJobStatus:
    return TrainingJobStatus(state="Starting", **fields)


async def admitted() -> tuple[Bench, str]:
    """A job with a rendering."""
    bench = Bench(Plan(status(), (Admit(),)))
    bench.plans.append(Plan(status()))
    await bench.run()
    name = bench.snapshots[-1].rendering.name  # type: ignore[union-attr]
    bench.api.objects[JOB]["status"]["rendered"] = name
    bench.put_job()
    bench.api.writes.clear()
    return bench, name


async def test_admission_makes_rights_tries_a_pod_and_plans_again() -> None:
    bench = Bench(Plan(status(), (Admit(),)), Plan(status(rendered="x")))
    await bench.run()
    kinds = [write.split("/")[-1] for write in bench.api.writes]
    assert kinds == ["serviceaccounts", "rolebindings", "networkpolicies", "pods (dry)", "configmaps", "status"]
    assert bench.snapshots[0].rendering is None
    rendering = bench.snapshots[1].rendering
    assert rendering is not None
    assert rendering.demand.requests["cpu"] == 1000
    assert f"/api/v1/namespaces/a/configmaps/{rendering.name}" in bench.api.objects


async def test_a_refused_pod_is_told_to_the_plan() -> None:
    bench = Bench(Plan(status(), (Admit(),)), Plan(status(observed_generation=1)))
    bench.api.trouble[f"POST {PODS}"] = ApiError(422, "Invalid", "spec.x: no such thing")
    await bench.run()
    refusal = bench.snapshots[1].refusal
    assert refusal is not None
    assert (refusal.reason, refusal.permanent, refusal.generation) == ("TemplateRefused", True, 1)
    assert "spec.x: no such thing" in refusal.message
    assert not bench.wrote("configmaps")


async def test_a_template_that_cannot_be_built_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise InvalidTemplate("spec.template", "no")

    monkeypatch.setattr(admission, "render", refuse)
    bench = Bench(Plan(status(), (Admit(),)), Plan(status()))
    await bench.run()
    assert bench.snapshots[1].refusal is not None
    assert bench.snapshots[1].refusal.reason == "InvalidTemplate"


async def test_trouble_of_the_api_server_is_no_refusal() -> None:
    bench = Bench(Plan(status(), (Admit(),)))
    bench.api.trouble[f"POST {PODS}"] = ApiError(503, "ServiceUnavailable", "busy")
    with pytest.raises(ApiError):
        await bench.run()
    assert not bench.wrote("status")


async def test_a_quota_that_others_charge_at_the_same_moment_is_no_refusal() -> None:
    crowded = ApiError(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "q": it has been modified')
    bench = Bench(Plan(status(), (Admit(),)))
    bench.api.trouble[f"POST {PODS}"] = crowded
    with pytest.raises(ApiError):
        await bench.run()
    bench, _ = await admitted()
    bench.plans = [Plan(status(pods=1), (CreatePod(0, 1, "n1"),))]
    bench.api.trouble[f"POST {PODS}"] = crowded
    with pytest.raises(ApiError):
        await bench.run()
    assert not bench.wrote("events"), "nobody needs to hear of it"


async def test_pods_are_in_the_books_until_they_are_created_and_then_by_themselves() -> None:
    bench, _ = await admitted()
    seen: list[tuple[int, int]] = []

    def taken() -> tuple[int, int]:
        return bench.cluster.ledger.used["n1"]["cpu"], bench.cluster.ledger.used["n1"]["pods"]

    bench.api.before = lambda what: seen.append(taken()) if what == f"POST {PODS}" else None
    bench.plans = [Plan(status(pods=2), (CreatePod(0, 1, "n1"), CreatePod(1, 1, "n1")), requeue_after=5.0)]
    assert await bench.run() == 5.0
    assert seen == [(2000, 2), (2000, 2)]
    assert taken() == (2000, 2)
    assert not bench.cluster.ledger.assumed
    assert len(bench.cluster.pods) == 2


async def test_two_gangs_do_not_both_count_on_the_same_quota() -> None:
    """Else each gets half of its pods, gives them back after a while, and does the same again."""
    bench, _ = await admitted()
    bench.cluster.quotas.put({"metadata": {"namespace": "a", "name": "q", "resourceVersion": "1"},
                              "spec": {"hard": {"pods": "5", "requests.cpu": "9"}}, "status": {
                                  "hard": {"pods": "5", "requests.cpu": "9"}, "used": {"pods": "1"}}})
    seen: list[Mapping[str, int]] = []

    def others() -> Mapping[str, int]:
        """What another job's plan would be told now."""
        other = Memory("other")
        snap = take(bench.cluster, bench.cluster.jobs.get("a/j"), other, ahead=(), settings=Settings(),  # type: ignore[arg-type]
                    rendered=bench.reconciler._memories["a/j"].rendered)
        return snap.quotas[0].left

    looked: list[bool] = []
    bench.cluster.capacity = lambda: looked.append(True)
    bench.api.before = lambda what: seen.append(others()) if what == f"POST {PODS}" else None
    bench.plans = [Plan(status(pods=2), (CreatePod(0, 1, None), CreatePod(1, 1, None)))]
    await bench.run()
    assert dict(seen[0]) == {"pods": 2, "requests.cpu": 7000}
    assert dict(others()) == {"pods": 4, "requests.cpu": 9000}, "from here on the quota itself knows"
    assert looked, "who was told so is told again"


async def test_what_was_not_created_gives_its_place_back_and_no_status_is_written() -> None:
    bench, _ = await admitted()
    bench.api.trouble[f"POST {PODS}"] = ApiError(403, "Forbidden", "exceeded quota: q, requested: pods=1")
    bench.plans = [Plan(status(pods=2), (CreatePod(0, 1, "n1"), CreatePod(1, 1, "n2")), (Emit("Normal", "R", "m"),))]
    with pytest.raises(ApiError):
        await bench.run()
    assert not bench.cluster.ledger.assumed
    assert sum(used["pods"] for used in bench.cluster.ledger.used.values()) == 1, "the other one was made"
    assert not bench.wrote("status")
    assert [e["reason"] for p, e in bench.api.objects.items() if "/events/" in p] == ["FailedQuotaExceeded"]


async def test_an_own_pod_that_is_there_already_counts_as_created() -> None:
    bench, name = await admitted()
    create = (CreatePod(0, 1, "n1"),)
    bench.plans = [Plan(status(rendered=name), create), Plan(status(rendered=name), create)]
    await bench.run()
    bench.cluster.pods.forget("a/j-0-1")  # the answer was lost
    await bench.run()
    assert bench.cluster.pods.get("a/j-0-1") is not None


async def test_a_strangers_pod_is_told_to_the_next_plan() -> None:
    bench, _ = await admitted()
    bench.api.objects[f"{PODS}/j-0-1"] = {"metadata": {"name": "j-0-1", "namespace": "a", "uid": "s",
                                                       "resourceVersion": "1"}, "spec": {}}
    bench.plans = [Plan(status(), (CreatePod(0, 1, "n1"),)), Plan(status())]
    with pytest.raises(Conflict, match="j-0-1"):
        await bench.run()
    await bench.run()
    assert bench.snapshots[-1].strangers == ("j-0-1",)


async def test_nothing_is_made_for_a_job_that_was_deleted_or_changed_meanwhile() -> None:
    for metadata in ({"uid": "another"}, {"generation": 2}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}):
        bench, _ = await admitted()
        bench.put_job(**metadata)  # the cache has not heard
        bench.plans = [Plan(status(), (CreatePod(0, 1, "n1"),))]
        with pytest.raises(Conflict):
            await bench.run()
        assert bench.api.writes == []
    bench, _ = await admitted()
    del bench.api.objects[JOB]
    bench.plans = [Plan(status(), (CreatePod(0, 1, "n1"),))]
    with pytest.raises(Conflict):
        await bench.run()
    assert bench.cluster.jobs.get("a/j") is None


async def test_a_stale_status_is_not_written_and_its_events_are_not_sent() -> None:
    bench = Bench(Plan(status(), (), (Emit("Normal", "R", "m"),)))
    bench.put_job(generation=1)  # a newer resource version, which the cache has not heard of
    with pytest.raises(Conflict):
        await bench.run()
    assert not bench.wrote("events")


def earlier_world() -> Object:
    """The World of a job of this name that was deleted; the garbage collector has not come yet."""
    return {"metadata": {"name": "j", "namespace": "a", "uid": "w", "resourceVersion": "1"}, "spec": {
        "job": "earlier", "generation": 9, "phase": "Done", "size": 1, "token": "x" * 16}}


async def test_the_world_of_an_earlier_job_of_that_name_is_waited_for() -> None:
    bench, _ = await admitted()
    bench.api.objects[f"{OURS}/namespaces/a/worlds/j"] = earlier_world()
    bench.cluster.worlds.put(earlier_world())
    spec = WorldSpec(job="ju", generation=1, phase="Run", size=2, token="y" * 16)
    bench.plans = [Plan(status(), (PutWorld(spec, None), CreatePod(0, 1, "n1")))]
    with pytest.raises(NotYet):
        await bench.run()
    assert bench.snapshots[-1].world is None
    assert not bench.wrote(PODS)


async def test_a_plan_knows_since_when_reports_were_heard_without_a_break() -> None:
    led, broke = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    bench = Bench(*(Plan(status()) for _ in range(3)))
    for bench.cluster.led_since, broken in ((None, None), (led, None), (led, broke)):
        next(watch for watch in bench.cluster.watches if watch.name == "reports").broken_at = broken
        await bench.run()
    assert [snap.heard_since for snap in bench.snapshots] == [None, led, broke]


@pytest.mark.parametrize("by", [3600, -3600])
async def test_a_clock_that_is_set_makes_nothing_older_or_younger(by: int) -> None:
    bench = Bench(*(Plan(status()) for _ in range(3)))
    now, steady = datetime(2026, 1, 1, tzinfo=UTC), 0.0
    bench.cluster.clock = WallClock(lambda: now, lambda: steady)
    bench.cluster.led_since = first = now
    spec = {"job": "ju", "podUid": "pu", "index": 0, "incarnation": 1, "generation": 1, "sequence": 5, "kind": "Formed"}
    bench.cluster.reports.put({"metadata": {"namespace": "a", "name": "j-0-1", "resourceVersion": "7"}, "spec": spec})
    bench.cluster.reports.revise(lambda one: replace(one, report=replace(one.report, received=first)))
    for seconds, jump in ((1.0, 0), (1.0, by), (1.0, 0)):
        now, steady = now + timedelta(seconds=seconds + jump), steady + seconds
        await bench.run()
    ages = [(snap.now - snap.reports[0].received).total_seconds() for snap in bench.snapshots]
    assert ages == [1, 2, 3]
    heard = [(snap.now - snap.heard_since).total_seconds() for snap in bench.snapshots if snap.heard_since]
    assert heard == [1, 0, 1], "steps that nobody reported meanwhile are not missed"


async def test_no_write_when_nothing_changed() -> None:
    bench = Bench(Plan(status()), Plan(status()))
    await bench.run()
    assert len(bench.wrote("status")) == 1
    await bench.run()
    assert len(bench.wrote("status")) == 1


async def test_a_pod_with_another_uid_is_not_deleted() -> None:
    bench, _ = await admitted()
    bench.api.trouble[f"DELETE {PODS}/j-0-1"] = ApiError(409, "Conflict", "uid")
    bench.plans = [Plan(status(), (DeletePod("j-0-1", "old"), CreatePod(0, 2, "n1")))]
    with pytest.raises(Conflict):
        await bench.run()
    assert not bench.wrote("POST")


@pytest.mark.parametrize(("code", "message", "expected"), [
    (403, 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5',
     ("QuotaExceeded", False)),
    (403, "pods \"x\" is forbidden: failed quota: q: must specify requests.cpu", ("QuotaExceeded", True)),
    (403, "unable to create new content in namespace a because it is being terminated",
     ("NamespaceTerminating", False)),
    (403, 'pods is forbidden: User "system:serviceaccount:o:o" cannot create resource "pods"',
     ("OperatorForbidden", False)),
    (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged', ("TemplateRefused", True)),
    (403, 'pods "x" is forbidden: error looking up service account a/s: serviceaccount "s" not found',
     ("TemplateRefused", False)),
    (403, 'pods "x" is forbidden: no PriorityClass with name p was found', ("TemplateRefused", False)),
    (403, 'pods "x" is forbidden: pod rejected: RuntimeClass "r" not found', ("TemplateRefused", False)),
    (422, "Pod is invalid: spec.containers[0].image: Required value", ("TemplateRefused", True)),
    (400, "strict decoding error: unknown field \"spec.containrs\"", ("TemplateRefused", True))])
def test_classification(code: int, message: str, expected: tuple[str, bool]) -> None:
    assert classify(ApiError(code, "X", message)) == expected


async def test_a_status_of_a_newer_version_stops_nothing() -> None:
    """After a rollback: what is not known is left aside, and gone with the next write."""
    bench, name = await admitted()
    newer = {"type": "Rebalanced", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    known = {"type": "Accepted", "status": "True", "reason": "Admitted", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    bench.api.objects[JOB]["status"] = {"state": "Hibernating", "rendered": name, "conditions": [newer, known]}
    bench.put_job()
    bench.plans = [Plan(status(rendered=name, withdrawals=1))]
    await bench.run()
    assert [condition.type for condition in bench.snapshots[-1].status.conditions] == ["Accepted"]
    assert bench.snapshots[-1].status.state is None
    assert bench.api.objects[JOB]["status"]["state"] == "Starting"


async def test_what_belongs_to_a_job_is_tried_as_a_whole_and_the_first_error_tells() -> None:
    bench = Bench(Plan(status(), (Admit(),)), Plan(status(observed_generation=1)))
    for kind, group in (("networkpolicies", "networking.k8s.io/v1"), ("rolebindings", "rbac.authorization.k8s.io/v1")):
        bench.api.trouble[f"POST /apis/{group}/namespaces/a/{kind}"] = ApiError(403, "Forbidden", f"no {kind} here")
    await bench.run()
    assert len(bench.wrote("/serviceaccounts")) == len(bench.wrote("/networkpolicies")) == 1
    assert not bench.wrote("(dry)")
    refusal = bench.snapshots[1].refusal
    assert refusal is not None
    assert "no rolebindings here" in refusal.message


@pytest.mark.parametrize(("count", "seconds", "most"), [
    (3, 0.0, 3), (20, 0.0, 16), (40, 0.0, 40 - 16), (2000, 0.0, 64), (2000, 0.7, 16), (500, 2.0, 16)])
async def test_a_gang_is_made_by_as_many_requests_as_are_answered_quickly(
        count: int, seconds: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak: 16 at first, one more for each quick answer (of 40 pods 24 are left when 8 have been answered)."""
    begun = there = peak = 0
    clock = 0.0
    monkeypatch.setattr("trainyard.controller.apply.time.monotonic", lambda: clock)

    async def make() -> None:
        nonlocal begun, there, peak, clock
        begun, there = begun + 1, there + 1
        peak = max(peak, there)
        await asyncio.sleep(0)
        clock += seconds  # of all that are under way; none is answered sooner
        there -= 1

    await apply._side_by_side([make] * count)
    assert begun == count
    assert peak == most


def test_the_number_of_requests_follows_the_answers() -> None:
    assert [apply._width(width, 0.1) for width in (4, 16, 63, 64)] == [5, 17, 64, 64]
    assert [apply._width(width, 0.7) for width in (4, 64)] == [4, 64]
    assert [apply._width(width, float("inf")) for width in (4, 5, 64)] == [4, 4, 63]


async def test_creation_ends_with_the_lease_and_leaves_nothing_under_way_when_cancelled() -> None:
    begun: list[int] = []

    async def lost() -> None:
        begun.append(1)
        raise NotLeading("gone")

    with pytest.raises(NotLeading):
        await apply._side_by_side([lost] * 1000)
    assert len(begun) == 16
    ended: list[int] = []

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    task = asyncio.create_task(apply._side_by_side([long] * 20))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 16
