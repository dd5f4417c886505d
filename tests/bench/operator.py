"""What the leading operator says about itself at /metrics, read through the API server."""

from __future__ import annotations

from dataclasses import dataclass

from harness.installation import SYSTEM, Yard
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Reading:
    """One scrape."""

    cpu_seconds: float
    resident_bytes: float
    reconciles: dict[float, float]  # cumulative count by upper bound in seconds
    count: float
    seconds: float

    def since(self, earlier: Reading) -> Reading:
        """What happened between two scrapes; memory is the later one's."""
        buckets = {bound: count - earlier.reconciles.get(bound, 0) for bound, count in self.reconciles.items()}
        return Reading(self.cpu_seconds - earlier.cpu_seconds, self.resident_bytes, buckets,
                       self.count - earlier.count, self.seconds - earlier.seconds)  # fmt: skip

    def quantile(self, share: float) -> float:
        """Upper bound of the histogram bucket that holds this share of the reconciles, in seconds."""
        return next((bound for bound, count in sorted(self.reconciles.items()) if count >= share * self.count), 0.0)

    @property
    def mean(self) -> float:
        """Mean seconds of a reconcile."""
        return self.seconds / self.count if self.count else 0.0


def scrape(yard: Yard) -> Reading:
    """Read the leader's metrics."""
    holder = yard.leader()
    pod = next(p["metadata"]["name"] for p in yard.operator_pods() if holder.startswith(p["metadata"]["name"]))
    text = yard.cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics")
    cpu = resident = count = seconds = 0.0
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "process_cpu_seconds_total":
                cpu = sample.value
            elif sample.name == "process_resident_memory_bytes":
                resident = sample.value
            elif sample.name == "trainyard_reconcile_seconds_bucket":
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0) + sample.value
            elif sample.name == "trainyard_reconcile_seconds_count":
                count += sample.value
            elif sample.name == "trainyard_reconcile_seconds_sum":
                seconds += sample.value
    return Reading(cpu, resident, buckets, count, seconds)
