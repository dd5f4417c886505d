"""Accelerators under the job's pods that went bad. The device is to blame, not the job: its pod is replaced and nothing
is counted, unless the job breaks one device after the other in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from trainyard.api.job import Avoid, DeviceFault
from trainyard.fleet.blame import BLAME_DEVICES, BLAME_SECONDS, codes_to_blame
from trainyard.fleet.devices import Device
from trainyard.plan.conditions import shorten
from trainyard.plan.losses import active
from trainyard.plan.restarts import exhausted, no_new_step
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Fault, Turn, Weight
from trainyard.plan.types import PodView

KIND = "DeviceFault"
SAY_SECONDS = 1.0  # kubelet may tell of a fault before NodeDevices says how bad it is
AVOID_SECONDS = 600.0  # the node of a faulty device is used when there is no other; the device itself is the agent's
LEAST_SECONDS = 10.0  # an entry of status.avoid is shown at least this long
NO_CODE = "kubelet says that it is unhealthy"
HELD = "not free: "  # told by the pod itself, before its ranks start; the node's agent sees nothing wrong
REFUND_SECONDS = 60.0  # a rank may fail of its device before anybody has noticed the device
KEPT = 64  # of status.deviceFaults


@dataclass(frozen=True, slots=True)
class Broken:
    """A device that a pod of the job uses and has to leave."""

    index: int
    pod: str
    node: str
    id: str
    code: str
    why: str

    @property
    def words(self) -> str:
        """The device and what it has."""
        return f"{self.id}: {self.why}"


def devices(turn: Turn) -> Turn:
    """A fault for every pod that uses a device which stops work."""
    turn = _remembered(turn)
    if not active(turn):
        return turn
    for index, pod in sorted(turn.gang.holders.items()):
        if pod.ended or not pod.node:
            continue
        broken, wait = _broken(turn, index, pod)
        if wait:
            turn = turn.look_again(wait)
        broken = broken or _held(turn, index, pod)
        if broken:
            turn = _fault(turn, index, pod, broken)
            if turn.stopped:
                return turn
    return turn


def uses_broken(turn: Turn, pod: PodView) -> bool:
    """Whether a pod, a spare for instance, has a device that stops work."""
    return bool(pod.node) and bool(_broken(turn, pod.index, pod)[0])


def blamed_codes(turn: Turn) -> frozenset[str]:
    """Codes that this job has raised on so many devices that they count against it."""
    return codes_to_blame(turn.status.device_faults)


def _broken(turn: Turn, index: int, pod: PodView) -> tuple[list[Broken], float]:
    """The pod's devices that stop work, and seconds after which to look again (0: no need)."""
    found, wait = [], 0.0
    node = pod.node or ""
    known = {device.id: device for device in _of_resource(turn, node, pod)}
    told = {device.id: device for device in pod.devices}
    about = turn.snap.devices.get(node)
    observed = about is not None and about.backend == "observe"
    mine = set(told) or {device.id for device in known.values() if device.pod == f"{turn.snap.namespace}/{pod.name}"}
    for name in sorted(mine):
        device, seen = known.get(name), told.get(name)
        if device is not None and device.stops:
            found.append(Broken(index, pod.name, node, name, device.code, device.words))
        elif seen is not None and seen.health == "Unhealthy" and not _tolerable(device, observed):
            since = seen.since or turn.now
            left = SAY_SECONDS - seconds_between(since, turn.now) if device is not None else 0.0
            if left <= 0:
                found.append(Broken(index, pod.name, node, name, "", NO_CODE))
            else:
                wait = max(wait, left)
    return found, wait


def _held(turn: Turn, index: int, pod: PodView) -> list[Broken]:
    """The pod's devices on which its supervisor still finds a process, although its ranks have ended."""
    told = next((report.spec.failure for report in turn.gang.reports if report.spec.index == index), None)
    if told is None:
        return []
    return [Broken(index, pod.name, pod.node or "", name, "", HELD + told.reason) for name in told.devices]


def _of_resource(turn: Turn, node: str, pod: PodView) -> tuple[Device, ...]:
    """Devices of the node's NodeDevices, if they are of the kind that the pod has."""
    told = turn.snap.devices.get(node)
    if told is None or (pod.devices and all(device.resource != told.resource for device in pod.devices)):
        return ()
    return told.devices


def _tolerable(device: Device | None, observed: bool) -> bool:
    """Whether NodeDevices explains why kubelet is told Unhealthy although the device may be used to the end: a level
    that lets work finish, an order, a probation, health that could not be read. Where another vendor's plugin is only
    observed, kubelet's word is the plugin's: an observer that sees every device of the node ill cannot tell that from a
    plugin that is gone, but kubelet can, which keeps the last word of one that is gone."""
    if device is None or device.stops:
        return False
    unread = device.health == "Unknown" and not observed
    return bool(device.level or device.quarantined or device.probation) or unread


def _fault(turn: Turn, index: int, pod: PodView, broken: list[Broken]) -> Turn:
    turn = _noted(turn, broken)
    blamed = blamed_codes(turn) & {one.code for one in broken}
    names = ", ".join(one.words for one in broken)
    culprit = f"{'device' if len(broken) == 1 else 'devices'} {names}; node {pod.node}, pod {pod.name}"
    weight: Weight = "free"
    if blamed:
        weight = "counted"
        culprit = (f"{culprit}; this job has raised {', '.join(sorted(blamed))} on {BLAME_DEVICES} devices or more, so "
                   "it counts against the job")
        if turn.world and turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
            return exhausted(turn, culprit)
    until = stamp(turn.now + timedelta(seconds=AVOID_SECONDS))
    avoid = tuple(Avoid(node=one.node, device=one.id[:63], reason=one.why[:4096], until=until) for one in broken)
    if not turn.gang.formed:
        turn = turn.emit("Warning", KIND, shorten(culprit, 1000))  # no recovery tells of it
    refund = not blamed and _counted_before_its_device_was_known(turn, pod)
    held = any(one.why.startswith(HELD) for one in broken)
    return turn.with_faults(Fault(KIND, culprit, turn.now, frozenset({index}), weight, avoid, refund, takes_over=held))


def _counted_before_its_device_was_known(turn: Turn, pod: PodView) -> bool:
    """Whether a failure of this pod's rank was counted just now, and led to no step since: one fault, one recovery."""
    assert turn.world is not None
    cause, policy = turn.world.cause, turn.spec.failure_policy
    at = moment(cause.at)
    return (
        cause.kind == "RankFailed" and f" of pod {pod.name} " in cause.culprit and cause.counted > 0
        and at is not None and seconds_between(at, turn.now) <= REFUND_SECONDS and no_new_step(turn)
        and all(rule.action != "Ignore" for rule in policy.rules)
    )  # fmt: skip


def _noted(turn: Turn, broken: list[Broken]) -> Turn:
    """With the faults whose code is known in status.deviceFaults, and an event for a code that now counts."""
    fresh = [DeviceFault(node=one.node, device=one.id[:63], code=one.code, at=stamp(turn.now))
             for one in broken if one.code]
    if not fresh:
        return turn
    before = blamed_codes(turn)
    places = {(fault.node, fault.device, fault.code) for fault in fresh}
    kept = [f for f in turn.status.device_faults if (f.node, f.device, f.code) not in places]
    turn = turn.note(device_faults=[*kept, *fresh][-KEPT:])
    for code in sorted(blamed_codes(turn) - before):
        on = ", ".join(f"{f.device} of {f.node}" for f in turn.status.device_faults if f.code == code)
        words = (f"This job has raised {code} on {BLAME_DEVICES} devices within 24 h ({on}). From now on it counts as "
                 "a failure of the job; the devices are not quarantined for it. Look at what the job does to them.")
        turn = turn.emit("Warning", "DeviceFaultsBlamed", shorten(words, 1000))
    return turn


def _remembered(turn: Turn) -> Turn:
    """What the status keeps of earlier faults, brought up to date: codes that came late, devices that are back, faults
    that are long ago."""
    recent = [fault for fault in turn.status.device_faults if (at := moment(fault.at)) is not None
              and seconds_between(at, turn.now) < BLAME_SECONDS]
    if len(recent) != len(turn.status.device_faults):
        turn = turn.note(device_faults=recent)
    kept = []
    for entry in turn.status.avoid:
        shown = AVOID_SECONDS - seconds_between(turn.now, moment(entry.until) or turn.now)
        told = turn.snap.devices.get(entry.node)
        device = told.device(entry.device) if told and entry.device else None
        if device is not None and entry.reason == NO_CODE and device.code:
            turn, entry = _named(turn, entry, device)
        if device is not None and device.usable and not entry.reason.startswith(HELD):
            if shown >= LEAST_SECONDS:
                continue
            turn = turn.look_again(LEAST_SECONDS - shown)
        kept.append(entry)
    return turn if kept == turn.status.avoid else turn.note(avoid=kept)


def _named(turn: Turn, entry: Avoid, device: Device) -> tuple[Turn, Avoid]:
    """The code of a fault that kubelet told of first."""
    vague, exact = f"{entry.device}: {NO_CODE}", f"{entry.device}: {device.words}"
    changed = [
        each.model_copy(update={"culprit": shorten(each.culprit.replace(vague, exact), 512)})
        if each.cause == KIND and f"node {entry.node}" in each.culprit else each
        for each in turn.status.recoveries
    ]
    turn = turn.note(recoveries=changed)
    turn = _noted(turn, [Broken(0, "", entry.node, entry.device, device.code, device.words)])
    return turn, entry.model_copy(update={"reason": device.words[:4096]})
