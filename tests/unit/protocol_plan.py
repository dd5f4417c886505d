"""The operator's plan() as a leader of the protocol's model: snapshots from an old view, actions with preconditions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.placement.books import Demand
from trainyard.plan import plan
from trainyard.plan.types import CreatePod, DeletePod, PodView, PutWorld, Rendering, Report, Snapshot, World
from unit.protocol_model import JOB, TOKEN, Model, Pod

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
GRACE = 10
RENDERING = Rendering("j-0123456789", "0123456789", Demand({"cpu": 1000, "pods": 1}), grace_seconds=GRACE)


class PlanLeader:
    """One of two operators. The status is written last, and only over the status that was read."""



    def __init__(self, model: Model) -> None:
        self.model = model
        self.spec = TrainingJobSpec.model_validate({
            "numNodes": model.size, "command": ["train"], "placement": "Scheduler", "spareNodes": model.spares,
            "failurePolicy": {"maxRestarts": 1000, "hangSeconds": 86400}, "cleanPodPolicy": "None",
        })
        self.received: dict[tuple[str, int], datetime] = {}
        self.view: Snapshot | None = None
        self.status_version = 0

    def refresh(self) -> None:
        """Read everything anew."""
        model = self.model
        if not model.api_up:
            return
        now = self._now()
        version, status = model.status or (0, TrainingJobStatus())
        self.status_version = version
        for name, report in model.reports.items():
            self.received.setdefault((name, report.sequence), now)
        here = [pod for pod in model.pods if not pod.deleted]
        names = {pod.name: pod.uid for pod in here}
        reports = tuple(Report(name, report, self.received[name, report.sequence])
                        for name, report in model.reports.items() if names.get(name) == report.pod_uid)
        self.view = Snapshot(
            now=now, namespace="team", name="j", uid=JOB, generation=1, created=NOW, spec=self.spec, status=status,
            admitted_hash="hash", rendering=RENDERING, pods=tuple(map(self._pod, here)), reports=reports,
            world=World(model.world, str(model.version)) if model.world is not None else None, new_token=TOKEN,
        )

    def act(self) -> None:
        """Plan on what was read, and carry it out as far as the API lets."""
        if self.view is None or not self.model.api_up:
            return
        made = plan(replace(self.view, now=self._now()))
        for action in made.actions:
            if isinstance(action, PutWorld):
                version = self.model.version if action.resource_version is None else int(action.resource_version)
                if action.resource_version is None and self.model.world is not None:
                    return  # AlreadyExists
                if not self.model.put_world(action.spec, version):
                    return
            elif isinstance(action, CreatePod):
                self.model.create(action.index, action.incarnation)
            elif isinstance(action, DeletePod):
                self.model.delete(action.uid, GRACE if action.grace_seconds is None else action.grace_seconds)
            else:
                raise AssertionError(f"not expected here: {action}")
        version = (self.model.status or (0, None))[0]
        if version == self.status_version:
            self.model.status = (version + 1, made.status)

    def _now(self) -> datetime:
        return NOW + timedelta(seconds=self.model.now)

    def _pod(self, pod: Pod) -> PodView:
        created = NOW + timedelta(seconds=pod.created)
        deleting = None if pod.deleting is None else NOW + timedelta(seconds=pod.deleting)
        phase: Literal["Running", "Failed", "Succeeded"] = "Running"
        if pod.exit_code is not None:
            phase = "Failed" if pod.exit_code else "Succeeded"
        return PodView(pod.name, pod.uid, pod.me.index, pod.me.incarnation, RENDERING.hash, created, f"n{pod.me.index}",
                       phase=phase, started=True, started_at=created, ready=True, deleting=deleting, ip=pod.me.pod_ip,
                       exit_code=pod.exit_code)
