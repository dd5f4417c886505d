"""What Prometheus reads of an agent. docs/devices.md lists every series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from trainyard.api.devices import DeviceStatus

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class Metrics:
    """The agent's series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registrations = Counter("trainyard_agent_registrations", "Registrations with kubelet.",
                                     registry=self.registry)
        self.allocations = Counter("trainyard_agent_allocations", "Containers that asked for devices.", ["result"],
                                   registry=self.registry)
        self.starts = Counter("trainyard_agent_container_starts", "Starts of containers with devices.", ["result"],
                              registry=self.registry)
        self.start_seconds = Histogram("trainyard_agent_container_start_seconds",
                                       "Seconds to decide whether a container may start.", buckets=_FAST,
                                       registry=self.registry)
        self.writes = Counter("trainyard_agent_writes", "Writes of NodeDevices.", ["result"], registry=self.registry)

    def devices(self, read: Callable[[], Sequence[DeviceStatus]]) -> None:
        """Read these at every scrape."""
        self.registry.register(_Devices(read))

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)


class _Devices(Collector):
    def __init__(self, read: Callable[[], Sequence[DeviceStatus]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        statuses = self._read()
        for name, text, value in (
            ("healthy", "1: works; 0: does not, or nobody knows.", lambda s: s.health == "Healthy"),
            ("known", "1: its health could be read.", lambda s: s.health != "Unknown"),
            ("network_healthy", "1: its link to other nodes works.", lambda s: s.network),
            ("held", "1: a pod holds it.", lambda s: bool(s.pod)),
            ("quarantined", "1: an order keeps new work off it.", lambda s: s.quarantined),
            ("on_probation", "1: it works again and takes no new work yet.", lambda s: s.probation is not None),
            ("faults_last_day", "Faults in the last 24 hours.", lambda s: s.faults),
        ):
            family = GaugeMetricFamily(f"trainyard_device_{name}", text, labels=["device"])
            for status in statuses:
                family.add_metric([status.id], float(value(status)))
            yield family
        fault = GaugeMetricFamily("trainyard_device_fault", "1 for the worst fault that a device has now.",
                                  labels=["device", "code", "level"])
        for status in statuses:
            if status.code:
                fault.add_metric([status.id, status.code, status.level or ""], 1.0)
        yield fault

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()
