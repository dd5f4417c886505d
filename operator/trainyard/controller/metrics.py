"""What Prometheus reads. docs/operator.md lists every series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from trainyard.fleet.devices import Accelerators, Device
from trainyard.fleet.quarantine import Withheld, failing
from trainyard.kube.times import instant

Gauges = dict[tuple[str, str, str], Mapping[str, float] | Mapping[tuple[str, ...], float]]
"""{(name, help, labels with spaces between): {label value, or label values: value}}"""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TRAINS = ("Running", "Recovering", "Succeeded", "Failed")  # states
_RECOVERY = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The operator's series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.reconcile_seconds = Histogram("trainyard_reconcile_seconds", "Seconds of one reconcile.", ["result"],
                                           buckets=_FAST, registry=self.registry)
        self.plan_seconds = Histogram("trainyard_plan_seconds", "Seconds of one plan.", buckets=_FAST,
                                      registry=self.registry)
        self.react_seconds = Histogram("trainyard_react_seconds", "Seconds a job waited for a worker.", buckets=_FAST,
                                       registry=self.registry)
        self.actions = Counter("trainyard_actions", "Actions carried out.", ["action"], registry=self.registry)
        self.recoveries = Counter("trainyard_recoveries", "Recoveries.", ["cause"], registry=self.registry)
        self.recovery_seconds = Histogram("trainyard_recovery_seconds", "Seconds of a recovery, by phase.",
                                          ["phase", "cause"],
                                          buckets=_RECOVERY, registry=self.registry)
        self.planned = Counter("trainyard_planned_events", "Other things that plans counted.", ["kind", "label"],
                               registry=self.registry)
        self.api_seconds = Histogram("trainyard_api_request_seconds", "Seconds until the API server answered.",
                                     ["method"], buckets=_FAST, registry=self.registry)
        self.api_errors = Counter("trainyard_api_errors", "Requests that failed; code 0: no answer.",
                                  ["method", "code"], registry=self.registry)
        self.leader = Gauge("trainyard_leader", "1 while this operator leads.", registry=self.registry)

    def observe_request(self, method: str, status: int, seconds: float) -> None:
        """One answer of the API server (status 0: none)."""
        self.api_seconds.labels(method).observe(seconds)
        if status == 0 or status >= 400:
            self.api_errors.labels(method, str(status)).inc()

    def count_plan(self, counted: Iterable[tuple[str, str, float]]) -> None:
        """What a plan counted, once its status is written: ("recovery", cause, seconds),
        ("recovery.<phase>", cause, seconds), or anything else by name."""
        for kind, label, value in counted:
            if kind == "recovery":
                self.recoveries.labels(label).inc()
                self.recovery_seconds.labels("total", label).observe(value)
            elif kind.startswith("recovery."):
                self.recovery_seconds.labels(kind.partition(".")[2], label).observe(value)
            else:
                self.planned.labels(kind, label).inc(value)

    def gauges(self, read: Callable[[], Gauges]) -> None:
        """Read these at every scrape."""
        self.registry.register(_Live(read))

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    def __init__(self, read: Callable[[], Gauges]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for (name, text, labels), values in self._read().items():
            family = GaugeMetricFamily(name, text, labels=labels.split())
            for each, value in values.items():
                named = (each,) if isinstance(each, str) else each
                family.add_metric(named if labels else (), value)
            yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()


def training_ratio(status: Mapping[str, Any], now: datetime) -> float | None:
    """The part of a job's time, since its first step, that brought it further; None while it holds no places or has not
    begun. `status` as the API has it."""
    known, ended = status.get("trainingTime") or {}, instant(status.get("completionTime"))
    since = instant(known.get("since"))
    if since is None or status.get("state") not in _TRAINS:
        return None
    now = ended or now
    lost = float(known.get("lostMilliseconds") or 0) / 1000
    last = (status.get("recoveries") or [{}])[-1]
    at = instant(last.get("at"))
    if at is not None and not ended and (last.get("milliseconds") or {}).get("total") is None:
        lost += max(0.0, (now - max(at, since)).total_seconds())
    whole = (now - since).total_seconds()
    return max(0.0, 1.0 - lost / whole) if whole > 0 else 1.0


def device_gauges(nodes: Iterable[Accelerators], withheld: Iterable[Withheld]) -> Gauges:
    """Sums by pool, and one series a device only where something is wrong: a cluster has tens of thousands."""
    states: dict[tuple[str, ...], float] = {}
    faults: dict[tuple[str, ...], float] = {}
    failures: dict[tuple[str, ...], float] = {}
    for told in nodes:
        for device in told.devices:
            key = (*told.pool, _state(device))
            states[key] = states.get(key, 0) + 1
            if not device.usable or device.level:
                faults[told.node, device.id, device.code, device.level or _state(device)] = 1
            if device.failures:
                failures[told.node, device.id] = len(device.failures)
    reasons: dict[str, float] = {}
    for each in withheld:
        reasons[each.reason] = reasons.get(each.reason, 0) + 1
    return {
        ("trainyard_devices", "Accelerators by state.", "resource model state"): states,
        ("trainyard_device_fault", "1 for each device that has a fault or is kept out.", "node device code level"):
            faults,
        ("trainyard_device_failures", "Faults of a device in the last day that took it out of use.", "node device"):
            failures,
        ("trainyard_quarantine_withheld", "Devices that fail repeatedly and wait for a human.", "reason"): reasons,
    }


def _state(device: Device) -> str:
    """One word for a device."""
    if device.health == "Unknown":
        return "unknown"
    if failing(device):
        return "on-probation" if device.probation else "unhealthy"
    if not device.usable:
        return "kept-out"
    return "in-use" if device.pod else "free"
