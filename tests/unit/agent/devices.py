"""A node's devices for tests, and their life in a line a reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from trainyard.agent.faults import Entry, FaultTable, Lasting, Repeated
from trainyard.agent.health import assess
from trainyard.agent.types import Facts, Fault, Reading, Unreadable
from trainyard.api.devices import Device, DeviceStatus, Level, Order

START = datetime(2026, 11, 22, 4, 0, tzinfo=UTC)
TABLE = FaultTable(
    codes={"80E01801": Entry(level="RestartBusiness", text="memory"), "80DE0207": Entry(level="SubHealthFault"),
           "80818C00": Entry(level="SeparateNPU"), "80E21007": Entry(level="NotHandleFault"),
           "81078603": Entry(level="NotHandleFault", network=True)},
    repeated=[Repeated(codes=["80E01801"], times=2, level="SeparateNPU")],
    lasting=[Lasting(codes=["81078603"], down_seconds=20, up_seconds=60, level="PreSeparateNPU")],
)


def facts(count: int = 2) -> Facts:
    devices = tuple(Device(id=f"Ascend910-{number}", physical=number, ring=number // 4) for number in range(count))
    return Facts(resource="huawei.com/Ascend910", model="910A", devices=devices)


def fault(code: str = "80818C00", level: Level | None = None, **fields: object) -> Fault:
    return Fault(code, level=level, **fields)  # type: ignore[arg-type]


@dataclass
class Life:
    """What happens to device 0: `at` jumps to a second, the rest is one reading then."""

    table: FaultTable = field(default_factory=lambda: TABLE)
    statuses: tuple[DeviceStatus, ...] = ()
    orders: Sequence[Order] = ()
    holders: Mapping[str, str] = field(default_factory=dict)

    def at(self, second: float, *faults: Fault, unread: bool = False, lost: bool = False) -> DeviceStatus:
        known = facts()
        reading: Reading | Unreadable = Reading(
            known, {"Ascend910-0": faults} if faults else {}, frozenset({"Ascend910-0"} if unread else ()))
        if lost:
            reading = Unreadable("HealthUnreadable", "npu-smi hangs")
        now = START + timedelta(seconds=second)
        self.statuses = assess(known, reading, self.orders, self.holders, self.table, self.statuses, now)
        return self.statuses[0]

    def hold(self, pod: str = "ns/pod") -> None:
        self.holders = {"Ascend910-0": pod} if pod else {}
