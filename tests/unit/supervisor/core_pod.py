"""A supervisor's core with a clock of its own, for tests of its rules: what it is told, and what it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from supervisor import events as e
from supervisor.core import Core

TOKEN = "0123456789abcdef"
WORLD = e.World("job", 1, "Run", 2, TOKEN, master_uid="uid-0", address="10.0.0.1:5000", drain_seconds=20)
Kind = TypeVar("Kind")


class Pod:
    """A core with a clock, and what it did."""

    def __init__(self, index: int = 1, ranks: int = 2, incarnation: int = 1, keeps: bool = False) -> None:
        me = e.Member("job", f"j-{index}-{incarnation}", f"uid-{index}", f"10.0.0.{index + 1}", index, incarnation,
                      ranks, 30, keeps=keeps)
        self.core = Core(me, uniform=lambda low, high: high, free_port=lambda: 4000)
        self.now = 100.0
        self.did: list[e.Action] = []

    def on(self, *events: e.Event) -> list[e.Action]:
        """Give it these events; what it did about them."""
        did = []
        for event in events:
            did += self.core.handle(event, self.now, 1000.0 + self.now)
        self.did += did
        return did

    def after(self, seconds: float) -> list[e.Action]:
        """Let time pass, timers firing when they are due."""
        end, did = self.now + seconds, []
        while (due := self.core.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            did += self.on(e.Timer())
        self.now = end
        return did

    def runs(self, world: e.World = WORLD) -> Pod:
        """With all ranks running."""
        self.on(e.WorldSeen(world), e.Linked(), e.GangSeen(e.GangState(world.generation, 0, e.Start("h", 1, True))))
        assert self.core.state == "run"
        return self

    def exits(self, *codes: int, root: bool = True, run: e.Run = (1, 0)) -> list[e.Action]:
        """Its ranks end with these codes, the first first."""
        did = []
        for local, code in enumerate(codes):
            rank = self.core.me.index * self.core.me.ranks + local
            did += self.on(e.RankExited(run, local, e.Exit(rank, code, root, "why", "text", 7)))
        return did


def found(did: list[e.Action], kind: type[Kind]) -> list[Kind]:
    return [action for action in did if isinstance(action, kind)]


def reports(did: list[e.Action]) -> list[str]:
    return [action.spec["kind"] for action in found(did, e.WriteReport)]


def last_report(pod: Pod) -> dict[str, Any]:
    return found(pod.did, e.WriteReport)[-1].spec


def master(size: int = 3) -> Pod:
    """Index 0, its store open, torch's ready, itself connected (connection 0) and joined."""
    pod = Pod(index=0, ranks=1)
    world = replace(WORLD, size=size, address="")
    pod.on(e.WorldSeen(world), e.StoreOpened("10.0.0.1:5000"), e.StoreReady((1, 0), 6000, True), e.Linked())
    joins(pod, 0)
    return pod


def joins(pod: Pod, index: int, state: str = "joining", run: e.Run = (1, 0), **more: Any) -> list[e.Action]:
    """Member `index` connects (its connection has its number) and says this."""
    return pod.on(e.MemberHello(index, e.Hello(index, 1, f"uid-{index}")),
                  e.MemberStatus(index, e.Status(*run, state, host=f"10.0.0.{index + 1}", port=4000, **more)))
