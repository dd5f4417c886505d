"""Who holds which place of the gang, and what the pods of its current generation have reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from trainyard.api.protocol import RankProgress, WorldSpec
from trainyard.plan.conditions import holds
from trainyard.plan.times import moment
from trainyard.plan.types import PodView, Report, Snapshot

PLANNED = frozenset({"Start", "Resume"})  # causes of a generation that no loss preceded


@dataclass(frozen=True, slots=True)
class Gang:
    """The pods and reports of one job, judged by its World."""

    members: tuple[int, ...]  # indices of the pods that hold the places, in the order of the places
    holders: Mapping[int, PodView]  # by index, of members: the pod of the incarnation that counts, dead or alive
    spares: Mapping[int, PodView]  # by index: the pods that hold no place and wait for one, dead or alive
    stale: tuple[PodView, ...]  # pods that hold no place any more, and never will again
    reports: tuple[Report, ...]  # those of this generation by the pods that hold the places, oldest first
    formed_at: datetime | None  # when all members had joined; None: not yet
    imported: frozenset[int]  # indices of spares whose supervisors say that they have imported what ranks need

    @property
    def size(self) -> int:
        """Places of the gang."""
        return len(self.members)

    @property
    def formed(self) -> bool:
        """Whether the ranks of this generation were started."""
        return self.formed_at is not None

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices of members without a pod."""
        return tuple(index for index in self.members if index not in self.holders)

    @property
    def alive(self) -> dict[int, PodView]:
        """Holders that are neither ended nor on their way out."""
        return {i: pod for i, pod in self.holders.items() if not pod.ended and pod.deleting is None}

    @property
    def progress(self) -> RankProgress | None:
        """What rank 0 last said in this generation. The master's last word has it from rank 0's pod, whose own reports
        may still be on their way."""
        end = self.said("Finished") or self.said("Drained")
        if end is not None and end.spec.progress is not None:
            return end.spec.progress
        return next((report.spec.progress for report in reversed(self.reports) if report.spec.progress), None)

    def said(self, kind: str) -> Report | None:
        """The first report of this kind."""
        return next((report for report in self.reports if report.spec.kind == kind), None)


def assess(snap: Snapshot, world: WorldSpec | None, size: int) -> Gang:
    """The gang as the World sees it; without a World every pod counts with its own incarnation."""
    members = world.members if world else tuple(range(size))
    places = frozenset(members)
    newest: dict[int, PodView] = {}
    spares: dict[int, PodView] = {}
    for pod in sorted(snap.pods, key=lambda pod: (pod.incarnation, pod.created, pod.uid)):
        if world is None or pod.incarnation == world.incarnation(pod.index):
            (newest if pod.index in places else spares)[pod.index] = pod
    uids = {pod.uid for pod in (*newest.values(), *spares.values())}
    stale = tuple(pod for pod in snap.pods if pod.uid not in uids)
    reports = tuple(
        sorted(
            (report for report in snap.reports if world is not None and _counts(report, snap, world, newest)),
            key=lambda report: (report.received, report.spec.index),
        )
    )
    formed_at = _formed_at(snap, world, reports)
    return Gang(members, newest, spares, stale, reports, formed_at, _imported(snap, spares))


def _imported(snap: Snapshot, spares: Mapping[int, PodView]) -> frozenset[int]:
    """Of whatever generation: what a process has imported stays."""
    if not spares:
        return frozenset()
    said = (report.spec for report in snap.reports if report.spec.kind == "Warm" and report.spec.job == snap.uid)
    told = {spec.pod_uid for spec in said}
    return frozenset(index for index, pod in spares.items() if pod.uid in told)


def _counts(report: Report, snap: Snapshot, world: WorldSpec, holders: Mapping[int, PodView]) -> bool:
    spec = report.spec
    holder = holders.get(spec.index)
    return (
        spec.job == snap.uid
        and spec.generation == world.generation
        and holder is not None
        and (spec.incarnation, spec.pod_uid) == (holder.incarnation, holder.uid)
    )


def _formed_at(snap: Snapshot, world: WorldSpec | None, reports: tuple[Report, ...]) -> datetime | None:
    """From the reports; a master that is gone took its report with it, then the status remembers."""
    if world is None:
        return None
    proofs = [report for report in reports if _proves_formed(report)]
    if proofs:
        told = [at for report in proofs if (at := moment(report.spec.formed_at))]
        return min(min(told, default=proofs[0].received), snap.now)
    if snap.status.world.generation == world.generation and holds(snap.status, "Running"):
        return snap.now
    return None


def _proves_formed(report: Report) -> bool:
    spec = report.spec
    if spec.failure is not None and spec.failure.devices:
        return False  # it was kept from joining
    return bool(spec.formed_at) or spec.kind in ("Formed", "RankFailed", "Finished", "Drained") or bool(spec.progress)


def trained(gang: Gang, world: WorldSpec | None) -> bool:
    """Whether ranks ran since the job was started or resumed."""
    return gang.formed or (world is not None and world.cause.kind not in PLANNED)


def highest_incarnation(snap: Snapshot, world: WorldSpec | None, index: int) -> int:
    """The highest incarnation of this index that anybody knows of; 0 if there was none."""
    pods = max((pod.incarnation for pod in snap.pods if pod.index == index), default=0)
    return max(pods, world.incarnation(index) if world else 0)
