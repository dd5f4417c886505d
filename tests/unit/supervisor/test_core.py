"""The supervisor's rules, one by one (docs/protocol.md). No processes, no sockets, no clock."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, TypeVar

import pytest
from supervisor import events as e
from supervisor import ranks
from supervisor.core import DONE_WITHIN, EARLY_DRAIN, SETTLE, URGENT_EVERY, Core
from supervisor.report import timestamp
from supervisor.store import status_from

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


def test_joins_and_starts_its_ranks_once_all_are_there() -> None:
    pod = Pod()
    did = pod.on(e.WorldSeen(WORLD))
    assert found(did, e.Link) == [e.Link("10.0.0.1:5000", TOKEN, 2)]
    assert found(did, e.SendStatus)[0].status.state == "joining"
    start = e.Start("10.0.0.1", 6000, True)
    did = pod.on(e.Linked(), e.GangSeen(e.GangState(1, 0)), e.GangSeen(e.GangState(1, 0, start)))
    assert found(did, e.StartRanks) == [e.StartRanks((1, 0), start, 2, 0, place=1)]
    assert found(pod.on(e.GangSeen(e.GangState(1, 0, start))), e.StartRanks) == []  # told twice, started once


def test_ranks_are_told_the_layout_that_was_measured() -> None:
    manifest = {"metadata": {}, "spec": {"job": "u", "generation": 2, "phase": "Run", "size": 1, "token": "t" * 16}}
    assert e.World.parse(manifest).tuned == ""
    manifest["spec"]["tuned"] = "0123456789"
    world = replace(WORLD, tuned=e.World.parse(manifest).tuned)
    start = e.Start("10.0.0.1", 6000, True)
    pod = Pod()
    did = pod.on(e.WorldSeen(world), e.Linked(), e.GangSeen(e.GangState(1, 0, start)))
    (order,) = found(did, e.StartRanks)
    assert order.tuned == "0123456789"
    told = ranks.rank_environment({}, pod.core.me, order, ranks.Rank(0, 2, "/scratch"), "/drain")
    assert told["TRAINYARD_TUNED"] == "0123456789"
    plain = ranks.rank_environment({}, pod.core.me, replace(order, tuned=""), ranks.Rank(0, 2, "/scratch"), "/drain")
    assert "TRAINYARD_TUNED" not in plain


def test_a_start_of_another_run_starts_nothing() -> None:
    pod = Pod()
    pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert not found(pod.on(e.GangSeen(e.GangState(1, 0, e.Start("h", 1, True)))), e.StartRanks)
    assert pod.on(e.GangSeen(e.GangState(3, 0, e.Start("h", 1, True)))) == [e.ReadWorld()]


def test_a_newer_generation_is_joined_only_when_the_old_ranks_are_gone() -> None:
    pod = Pod().runs()
    did = pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert found(did, e.KillRanks)
    assert found(did, e.SendStatus)[-1].status.state == "stopping"
    assert not found(pod.on(e.GangSeen(e.GangState(2, 0, e.Start("h", 1, True)))), e.StartRanks)
    did = pod.on(e.RanksGone())
    assert [action.status.state for action in found(did, e.SendStatus)] == ["joining"]
    assert found(pod.on(e.GangSeen(e.GangState(2, 0, e.Start("h", 1, True)))), e.StartRanks)


@pytest.mark.parametrize("old", [
    replace(WORLD, generation=1), replace(WORLD, generation=2, phase="Run"),
    replace(WORLD, generation=2, phase="Drain", master_uid="", version=1),
], ids=["generation", "phase", "version"])
def test_an_old_answer_that_comes_late_changes_nothing(old: e.World) -> None:
    pod = Pod()
    pod.on(e.WorldSeen(replace(WORLD, generation=2, phase="Drain", version=2)))
    assert pod.on(e.WorldSeen(old)) == []


@pytest.mark.parametrize("world", [
    replace(WORLD, job="another"), replace(WORLD, generation=2, incarnations={1: 2}),
], ids=["job", "incarnation"])
def test_a_fenced_pod_stops_and_writes_nothing(world: e.World) -> None:
    pod = Pod().runs()
    did = pod.on(e.WorldSeen(world))
    assert found(did, e.KillRanks)
    assert not found(did, e.WriteReport)
    assert pod.on(e.RanksGone()) == [e.Leave(143, flush=False)]


def test_401_fences() -> None:
    pod = Pod().runs()
    assert found(pod.on(e.Unauthorized()), e.KillRanks)
    assert pod.on(e.RanksGone()) == [e.Leave(143, flush=False)]


def test_a_pod_that_the_world_does_not_know_yet_waits() -> None:
    pod = Pod(incarnation=2)
    assert not found(pod.on(e.WorldSeen(WORLD)), e.SendStatus)
    assert found(pod.on(e.WorldSeen(replace(WORLD, generation=2, incarnations={1: 2}))), e.SendStatus)


def test_a_protocol_that_is_too_new_is_refused_and_the_next_one_is_not() -> None:
    pod = Pod()
    did = pod.on(e.WorldSeen(replace(WORLD, protocol=3)))
    assert "protocol 3" in found(did, e.Log)[0].text
    assert len(did) == 1
    assert found(pod.on(e.WorldSeen(replace(WORLD, protocol=2))), e.SendStatus)


def test_done_leaves_with_0_in_every_state() -> None:
    done = e.WorldSeen(replace(WORLD, phase="Done"))
    assert e.Leave(0, flush=True) in Pod().on(done)
    running = Pod().runs()
    assert found(running.on(done), e.KillRanks)
    assert running.on(e.RanksGone()) == [e.Leave(0, flush=True)]
    failed = Pod().runs()
    failed.exits(1)
    failed.on(e.RanksGone())
    assert e.Leave(0, flush=True) in failed.on(done)


def test_a_root_is_reported_at_once() -> None:
    pod = Pod().runs()
    did = pod.exits(-9)
    assert found(did, e.KillRanks)
    assert reports(did) == ["RankFailed"]
    failure = last_report(pod)["failure"]
    assert failure == {"root": True, "rank": 2, "exitCode": -9, "reason": "why", "text": "text", "oom": False,
                       "step": 7}
    assert found(did, e.TerminationMessage)[0].text == "rank 2: why\ntext"


def test_a_consequence_is_held_back_and_then_reported() -> None:
    pod = Pod().runs()
    assert not reports(pod.exits(1, 1, root=False))
    assert reports(pod.after(1.0)) == ["RankFailed"]
    assert last_report(pod)["failure"]["root"] is False


def test_a_consequence_is_dropped_when_a_newer_generation_comes_first() -> None:
    pod = Pod().runs()
    pod.exits(1, 1, root=False)
    pod.after(0.5)
    pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert not reports(pod.after(5.0))


def test_the_root_among_this_pods_ranks_is_named_even_if_its_consequence_ended_first() -> None:
    pod = Pod().runs()
    pod.on(e.RankExited((1, 0), 0, e.Exit(2, 1, False, "Connection closed by peer")))
    pod.after(SETTLE / 2)
    did = pod.on(e.RankExited((1, 0), 1, e.Exit(3, -11, True, "SIGSEGV")))
    assert reports(did) == ["RankFailed"]
    assert last_report(pod)["failure"]["rank"] == 3


def test_ranks_that_do_not_end_after_a_consequence_are_stopped() -> None:
    pod = Pod().runs()
    assert not found(pod.exits(1, root=False), e.KillRanks)
    assert found(pod.after(SETTLE), e.KillRanks)


def test_exits_of_an_earlier_run_are_ignored() -> None:
    pod = Pod().runs()
    pod.on(e.WorldSeen(replace(WORLD, generation=2)), e.RanksGone())
    assert pod.exits(-9, -9, run=(1, 0)) == []


def test_a_finished_member_tells_the_master_and_waits_for_done() -> None:
    pod = Pod().runs()
    did = pod.exits(0, 0)
    assert found(did, e.SendStatus)[-1].status.state == "finished"
    pod.on(e.RanksGone())
    assert not found(pod.after(2 * DONE_WITHIN), e.Leave)  # the others still train
    pod.on(e.GangSeen(e.GangState(1, 0, None, "finished")))
    assert not found(pod.after(DONE_WITHIN - 1), e.Leave)
    pod.on(e.ApiLost("gone"))
    pod.after(DONE_WITHIN)
    pod.on(e.ApiBack())
    assert not found(pod.after(DONE_WITHIN - 1), e.Leave)
    assert found(pod.after(2), e.Leave) == [e.Leave(0, flush=True)]


def test_a_finished_member_starts_again_with_the_others() -> None:
    pod = Pod().runs()
    pod.exits(0, 0)
    pod.on(e.RanksGone())
    assert found(pod.on(e.WorldSeen(replace(WORLD, generation=2))), e.SendStatus)[-1].status.state == "joining"


def test_drain_saves_and_says_the_step() -> None:
    pod = Pod(index=0)
    world = replace(WORLD, master_uid="uid-1")
    pod.runs(world)
    pod.on(e.ProgressSeen((1, 0), {"step": 12, "durableStep": 12}))
    assert found(pod.on(e.WorldSeen(replace(world, phase="Drain"))), e.TouchDrain)
    pod.exits(75, 75)
    status = found(pod.on(e.RanksGone()), e.SendStatus)[-1].status
    assert (status.state, status.saved, status.step) == ("drained", True, 12)


def test_drain_is_told_once() -> None:
    pod = Pod().runs()
    drain = e.WorldSeen(replace(WORLD, phase="Drain"))
    pod.on(drain)
    assert not found(pod.on(drain), e.TouchDrain)


def test_ranks_that_ignore_drain_get_sigterm_then_sigkill() -> None:
    pod = Pod().runs()
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    assert not found(pod.after(19.9), e.TermRanks)
    assert found(pod.after(0.2), e.TermRanks)
    assert not found(pod.after(4.8), e.KillRanks)
    assert found(pod.after(0.2), e.KillRanks)
    status = found(pod.on(e.RanksGone()), e.SendStatus)[-1].status
    assert (status.state, status.saved) == ("drained", False)
    assert "RankFailed" not in reports(pod.did)


def test_nothing_to_drain_is_drained() -> None:
    pod = Pod()
    did = pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    assert found(did, e.SendStatus)[-1].status.state == "drained"


def test_a_root_during_drain_is_reported_a_consequence_is_not() -> None:
    for root, wanted in ((True, ["RankFailed"]), (False, [])):
        pod = Pod(ranks=1).runs()
        pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
        assert reports(pod.exits(1, root=root)) == wanted
        assert found(pod.on(e.RanksGone()), e.SendStatus)[-1].status.state == "drained"
        assert not reports(pod.after(5))


def test_75_before_drain_is_seen_waits_for_it() -> None:
    pod = Pod().runs()
    assert found(pod.exits(75, 75), e.ReadWorld)
    pod.on(e.RanksGone())
    pod.after(EARLY_DRAIN - 1)
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    assert not reports(pod.after(60))
    assert pod.core.state == "drained"


def test_75_without_drain_is_a_failure() -> None:
    pod = Pod().runs()
    pod.exits(75, 75)
    assert reports(pod.after(EARLY_DRAIN)) == ["RankFailed"]
    assert last_report(pod)["failure"]["exitCode"] == 75


def test_sigterm_asks_for_a_drain_and_leaves_when_the_gang_is_drained() -> None:
    pod = Pod().runs()
    did = pod.on(e.Terminate())
    assert reports(did) == ["Stopping"]
    assert not found(did, e.KillRanks)
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    pod.exits(75, 75)
    assert not found(pod.on(e.RanksGone()), e.Leave)
    assert found(pod.on(e.GangSeen(e.GangState(1, 0, None, "drained"))), e.Leave) == [e.Leave(143, flush=True)]


def test_sigterm_leaves_before_the_grace_ends() -> None:
    pod = Pod().runs()
    pod.on(e.Terminate())
    assert not found(pod.after(26.9), e.KillRanks)
    assert found(pod.after(0.2), e.KillRanks)
    assert pod.on(e.RanksGone()) == [e.Leave(143, flush=True)]


def test_sigterm_leaves_when_superseded() -> None:
    pod = Pod().runs()
    pod.on(e.Terminate())
    assert found(pod.on(e.WorldSeen(replace(WORLD, generation=2))), e.KillRanks)
    assert pod.on(e.RanksGone()) == [e.Leave(143, flush=True)]


@pytest.mark.parametrize("before", ["no world", "joining", "failed", "drained"])
def test_sigterm_with_nothing_to_save_leaves_at_once(before: str) -> None:
    pod = Pod()
    if before == "joining":
        pod.on(e.WorldSeen(WORLD))
    if before == "failed":
        pod.runs()
        pod.exits(1, 1, root=False)
        pod.on(e.RanksGone())
    if before == "drained":
        pod.on(e.WorldSeen(replace(WORLD, phase="Drain")), e.Linked(), e.GangSeen(e.GangState(1, 0, None, "drained")))
    did = pod.on(e.Terminate())
    assert found(did, e.Leave) == [e.Leave(143, flush=True)]
    wanted = {"no world": [], "failed": ["RankFailed"]}.get(before, ["Stopping"])
    assert reports(did) == wanted


def test_a_finished_master_that_is_told_to_end_stays_until_done() -> None:
    pod = Pod().runs()
    pod.exits(0, 0)
    pod.on(e.RanksGone(), e.Terminate())
    assert not found(pod.after(20), e.Leave)
    assert found(pod.on(e.WorldSeen(replace(WORLD, phase="Done"))), e.Leave) == [e.Leave(0, flush=True)]


def test_progress_goes_out_for_the_first_step_a_new_durable_step_the_end_and_else_every_2_s() -> None:
    pod = Pod(index=0).runs(replace(WORLD, master_uid="uid-1"))

    def told(step: int, **more: Any) -> bool:
        return bool(reports(pod.on(e.ProgressSeen((1, 0), {"step": step, "steps": 100, **more}))))

    assert told(1)
    assert not told(2)
    pod.after(URGENT_EVERY)
    assert told(3, durableStep=3)
    assert not told(4, durableStep=3)
    assert not reports(pod.after(1.9))
    assert reports(pod.after(0.2)) == ["Formed"]
    assert last_report(pod)["progress"]["step"] == 4
    assert not told(5, durableStep=3)
    pod.after(URGENT_EVERY)
    assert told(100, durableStep=3)


def test_the_first_step_of_a_run_is_not_where_it_resumed() -> None:
    pod = Pod(index=0).runs(replace(WORLD, master_uid="uid-1"))
    pod.on(e.ProgressSeen((1, 0), {"step": 10, "durableStep": 10}))
    assert "firstStepAt" not in last_report(pod)["progress"]
    pod.after(5)
    pod.on(e.ProgressSeen((1, 0), {"step": 11, "durableStep": 10}))
    first = last_report(pod)["progress"]["firstStepAt"]
    pod.after(5)
    pod.on(e.ProgressSeen((1, 0), {"step": 12, "durableStep": 10}))
    assert last_report(pod)["progress"]["firstStepAt"] == first == "1970-01-01T00:18:25.000000Z"


def test_a_script_that_saves_every_step_and_tells_no_pace_finishes_steps_too() -> None:
    pod = Pod(index=0).runs(replace(WORLD, master_uid="uid-1"))
    pod.on(e.ProgressSeen((1, 0), {"step": 10, "durableStep": 10}))
    assert "firstStepAt" not in last_report(pod)["progress"]
    pod.after(5)
    pod.on(e.ProgressSeen((1, 0), {"step": 11, "durableStep": 11}))
    assert "firstStepAt" in last_report(pod)["progress"]


def test_what_was_restored_from_memory_is_no_finished_step() -> None:
    pod = Pod(index=0).runs(replace(WORLD, master_uid="uid-1"))
    told = {"step": 14, "durableStep": 10, "connectedAt": "1970-01-01T00:18:20Z"}
    pod.on(e.ProgressSeen((1, 0), told))
    assert "firstStepAt" not in last_report(pod)["progress"], "it is being restored"
    pod.after(5)
    told["restoredAt"] = "1970-01-01T00:18:24Z"
    pod.on(e.ProgressSeen((1, 0), told, (("NoMemoryCopies", "none"),)))
    pod.after(5)
    assert "firstStepAt" not in last_report(pod)["progress"], "a warning is no step either"
    pod.on(e.ProgressSeen((1, 0), {**told, "step": 15, "secondsPerStep": "0.1"}))
    assert last_report(pod)["progress"]["firstStepAt"] == "1970-01-01T00:18:30.000000Z"


def test_only_the_pod_of_rank_0_tells_progress() -> None:
    assert Pod(index=1).runs().on(e.ProgressSeen((1, 0), {"step": 1})) == []


def test_a_world_that_is_deleted_and_made_again() -> None:
    pod = Pod().runs()
    assert not found(pod.on(e.WorldMissing()), e.KillRanks)
    assert found(pod.on(e.WorldSeen(replace(WORLD, generation=5))), e.KillRanks)


def test_a_later_failure_of_a_newer_run_has_nothing_of_the_last() -> None:
    pod = Pod().runs()
    pod.exits(-9)
    pod.on(e.RanksGone())
    pod.runs(replace(WORLD, generation=2))
    pod.on(e.Terminate())
    assert "failure" not in last_report(pod)


# The master ----------------------------------------------------------------------------------------------------------


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


def test_the_master_opens_its_store_and_reports_its_address() -> None:
    pod = Pod(index=0)
    assert found(pod.on(e.WorldSeen(replace(WORLD, address=""))), e.OpenStore) == [e.OpenStore(TOKEN)]
    did = pod.on(e.StoreOpened("10.0.0.1:5000"))
    assert reports(did) == ["Master"]
    assert last_report(pod)["address"] == "10.0.0.1:5000"
    assert found(did, e.Link) == [e.Link("10.0.0.1:5000", TOKEN, 2)]


def test_an_open_store_keeps_its_address_over_generations() -> None:
    pod = Pod(index=0)
    pod.on(e.WorldSeen(WORLD), e.StoreOpened("10.0.0.1:5000"))
    did = pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert not found(did, e.OpenStore)
    assert not reports(did)
    assert found(did, e.PrepareStore) == [e.PrepareStore((2, 0))]


def test_a_store_that_had_to_be_opened_anew_is_announced_whatever_was_said_before() -> None:
    pod = master(size=2)
    joins(pod, 1)
    pod.on(e.WorldSeen(replace(WORLD, master_uid="")), e.WorldSeen(WORLD))
    assert reports(pod.on(e.StoreOpened("10.0.0.1:5001"))) == ["Formed"]
    assert last_report(pod)["address"] == "10.0.0.1:5001"


def test_the_gang_forms_when_the_last_member_has_joined() -> None:
    pod = master()
    assert not reports(joins(pod, 1))
    did = joins(pod, 2)
    assert reports(did) == ["Formed"]
    start = e.GangState(1, 0, e.Start("10.0.0.1", 6000, True))
    assert {action.connection for action in found(did, e.Tell) if action.gang == start} == {0, 1, 2}


def test_without_torch_the_ranks_meet_at_rank_0() -> None:
    pod = Pod(index=1, ranks=1)
    pod.on(e.WorldSeen(replace(WORLD, master_uid="uid-1", address="")), e.StoreOpened("10.0.0.2:5000"),
           e.StoreReady((1, 0), 0, False))
    joins(pod, 1)
    did = joins(pod, 0)
    assert found(did, e.Tell)[-1].gang.start == e.Start("10.0.0.1", 4000, False)


def test_a_member_that_went_away_has_not_joined() -> None:
    pod = master()
    joins(pod, 1)
    pod.on(e.MemberGone(1))
    assert not reports(joins(pod, 2))
    assert reports(joins(pod, 1)) == ["Formed"]


def test_missing_members_are_reported_and_those_that_come_later_taken_off() -> None:
    pod = master()
    pod.after(59)
    assert reports(pod.after(2)) == ["Missing"]
    assert last_report(pod)["missing"] == [1, 2]
    joins(pod, 2)
    assert reports(pod.after(2)) == ["Missing"]
    assert last_report(pod)["missing"] == [1]
    assert reports(joins(pod, 1)) == ["Formed"]
    assert last_report(pod)["missing"] == []


@pytest.mark.parametrize(("hello", "why"), [
    (e.Hello(1, 1, "twin"), "held by the pod"), (e.Hello(1, 2, "new"), "held by incarnation 1"),
    (e.Hello(3, 1, "uid-3"), "holds no place in a gang of 3"),
], ids=["second claimant", "incarnation", "index"])
def test_who_has_no_place_is_refused(hello: e.Hello, why: str) -> None:
    pod = master()
    joins(pod, 1)
    pod.on(e.MemberGone(1))
    assert why in found(pod.on(e.MemberHello(9, hello)), e.Refuse)[0].reason


def test_an_older_generation_does_not_count_and_a_newer_one_makes_the_master_look() -> None:
    pod = master(size=2)
    assert not reports(joins(pod, 1, run=(0, 0)))
    assert found(joins(pod, 1, run=(2, 0)), e.ReadWorld)
    assert found(pod.on(e.MemberBeat(1, 2)), e.ReadWorld)


def test_a_start_that_was_lost_is_told_again_but_never_to_one_that_has_run() -> None:
    pod = master(size=2)
    joins(pod, 1)
    assert found(joins(pod, 1), e.Tell)[-1].gang.start is not None
    joins(pod, 1, "running")
    pod.on(e.GangSeen(e.GangState(1, 0, e.Start("10.0.0.1", 6000, True))))
    did = joins(pod, 1)  # its supervisor died and started anew
    assert all(action.gang.start is None for action in found(did, e.Tell))
    assert reports(did) == ["RankFailed"]


def test_finished_and_drained_are_collected() -> None:
    for states, wanted in ((["finished"] * 3, "Finished"), (["drained", "finished", "drained"], "Drained")):
        pod = master()
        for index in (1, 2):
            joins(pod, index)
        if wanted == "Drained":
            pod.on(e.WorldSeen(replace(WORLD, size=3, phase="Drain", address="10.0.0.1:5000")))
        did = []
        for index, state in enumerate(states):
            pod.on(e.MemberGone((index - 1) % 3)) if index == 2 else None  # what is over stays over
            did += joins(pod, index, state, saved=True, step=9 if index == 0 else None)
        assert reports(did)[-1:] == [wanted]
        assert last_report(pod).get("drainedStep") == (9 if wanted == "Drained" else None)


@pytest.mark.parametrize("state", ["finished", "drained"])
def test_the_end_is_told_with_what_rank_0_said_last_wherever_it_is(state: str) -> None:
    """Its own pod's report may come later than the master's, and the job is over by then."""
    holds_rank_0 = Pod(0, ranks=1).runs(replace(WORLD, master_uid="uid-1"))
    for said in ({"step": 99, "steps": 100}, {"step": 100, "loss": "2"}):
        holds_rank_0.on(e.ProgressSeen((1, 0), said))
    if state == "drained":
        holds_rank_0.on(e.WorldSeen(replace(WORLD, master_uid="uid-1", phase="Drain")))
    did = holds_rank_0.exits(75 if state == "drained" else 0) + holds_rank_0.on(e.RanksGone())
    told = found(did, e.SendStatus)[-1].status
    assert told.state == state
    sent = status_from(json.loads(json.dumps(asdict(told))))
    assert sent == told
    pod = master(size=2)
    if state == "drained":
        pod.on(e.WorldSeen(replace(WORLD, phase="Drain", address="10.0.0.1:5000")))
    joins(pod, 1, state, saved=True)
    joins(pod, 0, state, saved=True, progress=sent.progress)
    assert last_report(pod)["kind"] == state.capitalize()
    assert last_report(pod)["progress"]["loss"] == "2"


def test_a_drain_that_one_member_did_not_save_has_no_step() -> None:
    pod = master(size=2)
    joins(pod, 1)
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain", address="10.0.0.1:5000")))
    joins(pod, 0, "drained", saved=True, step=9)
    joins(pod, 1, "drained", saved=False)
    assert last_report(pod)["kind"] == "Drained"
    assert "drainedStep" not in last_report(pod)


def broken_without_api(attempts: int = 3) -> Pod:
    """A running gang of 2 whose API is away and whose member 1 has failed."""
    pod = Pod(index=0, ranks=1)
    pod.on(e.WorldSeen(replace(WORLD, address="", local_attempts=attempts)), e.StoreOpened("10.0.0.1:5000"),
           e.StoreReady((1, 0), 6000, True), e.Linked())
    joins(pod, 0)
    joins(pod, 1)
    joins(pod, 0, "running")
    joins(pod, 1, "running")
    pod.on(e.ApiLost("gone"))
    joins(pod, 1, "failed")
    return pod


def test_without_the_api_the_same_members_start_again_after_2_5_s() -> None:
    pod = broken_without_api()
    assert not found(pod.after(2.4), e.PrepareStore)
    did = pod.after(0.2)
    assert found(did, e.PrepareStore) == [e.PrepareStore((1, 1))]
    assert {action.gang.run for action in found(did, e.Tell)} == {(1, 1)}
    pod.on(e.StoreReady((1, 1), 6001, True))
    joins(pod, 1, run=(1, 1))
    pod.on(e.GangSeen(e.GangState(1, 1)))
    assert reports(joins(pod, 0, run=(1, 1))) == ["Formed"]
    assert last_report(pod)["attempt"] == 1
    (warning,) = last_report(pod)["warnings"]
    assert warning["reason"] == "RestartedWithoutApi"
    assert "index 1 failed" in warning["message"]
    assert "1.1" in warning["message"]


@pytest.mark.parametrize("event", [e.ApiBack(), e.MemberGone(1),
                                   e.MemberStatus(1, e.Status(2, 0, "joining"))], ids=["api", "gone", "newer"])
def test_no_attempt_if_the_api_is_back_or_a_member_is_away_or_knows_better(event: e.Event) -> None:
    pod = broken_without_api()
    pod.after(2)
    pod.on(event)
    assert not found(pod.after(60), e.PrepareStore)


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_local_attempts_are_limited_until_the_api_answers(attempts: int) -> None:
    pod = broken_without_api(attempts)

    def attempts_made(first: int) -> int:
        """Until none follows a failure any more."""
        for number in range(first, 100):
            if not found(pod.after(60), e.PrepareStore):
                return number - first
            joins(pod, 0, "running", run=(1, number))
            joins(pod, 1, "failed", run=(1, number))
        raise AssertionError("no end of attempts")

    assert attempts_made(1) == attempts
    pod.on(e.ApiBack(), e.ApiLost("gone"))
    assert attempts_made(attempts + 1) == attempts
    pod.on(e.WorldSeen(replace(WORLD, generation=2, local_attempts=attempts)), e.ApiLost("gone"))
    joins(pod, 0, "running", run=(2, 0))
    joins(pod, 1, "failed", run=(2, 0))
    assert bool(found(pod.after(60), e.PrepareStore)) == (attempts > 0)


def test_a_member_follows_the_masters_attempt() -> None:
    pod = Pod(index=1, ranks=1).runs()
    pod.on(e.ApiLost("gone"))
    did = pod.on(e.GangSeen(e.GangState(1, 1)))
    assert found(did, e.KillRanks)
    assert found(did, e.DropReport)
    assert found(pod.on(e.RanksGone()), e.SendStatus)[-1].status.run == (1, 1)


def test_the_death_of_torchs_store_fails_the_run() -> None:
    pod = master(size=2)
    joins(pod, 1)
    pod.on(e.GangSeen(e.GangState(1, 0, e.Start("10.0.0.1", 6000, True))))
    assert reports(pod.on(e.StoreReady((1, 0), 6001, True))) == ["RankFailed"]
    assert "torch's store" in last_report(pod)["failure"]["reason"]


def test_another_master_takes_over() -> None:
    pod = master(size=2)
    did = pod.on(e.WorldSeen(replace(WORLD, generation=2, master_uid="uid-1", address="10.0.0.2:7000")))
    assert found(did, e.CloseStore)
    assert found(did, e.Link) == [e.Link("10.0.0.2:7000", TOKEN, 2)]
    pod.on(e.Terminate())
    assert "address" not in last_report(pod)


def test_zero_after_a_forced_drain_is_not_finished() -> None:
    """Many programs answer SIGTERM with 0; a job that is suspended like that has not succeeded."""
    pod = Pod().runs()
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    assert found(pod.after(20.1), e.TermRanks)
    pod.exits(0, 0)
    status = found(pod.on(e.RanksGone()), e.SendStatus)[-1].status
    assert (status.state, status.saved) == ("drained", False)


def test_a_finished_member_that_is_told_to_end_leaves_with_the_drained_gang() -> None:
    pod = Pod().runs()
    pod.exits(0, 0)
    pod.on(e.RanksGone(), e.Terminate(), e.WorldSeen(replace(WORLD, phase="Drain")))
    assert pod.core.leaving is None
    assert found(pod.on(e.GangSeen(e.GangState(1, 0, None, "drained"))), e.Leave) == [e.Leave(143, flush=True)]


def test_a_program_that_saves_every_step_does_not_flood_the_api() -> None:
    pod = Pod(index=0).runs(replace(WORLD, master_uid="another"))
    written = 0
    for step in range(1, 101):  # 10 s
        written += len(reports(pod.on(e.ProgressSeen((1, 0), {"step": step, "durableStep": step}))))
        written += len(reports(pod.after(0.1)))
    assert 15 <= written <= 22
    assert last_report(pod)["progress"]["durableStep"] >= 95


@pytest.mark.parametrize("first", ["world", "term"])
def test_sigterm_of_a_job_that_was_deleted_leaves_at_once(first: str) -> None:
    """World and pods go together, and nobody is left to answer with Drain."""
    pod = Pod().runs()
    events = [e.WorldMissing(), e.Terminate()]
    did = pod.on(*(events if first == "world" else reversed(events)))
    assert found(did, e.KillRanks)
    assert pod.core.leaving == 143


def test_a_world_that_was_lost_and_made_again_is_followed() -> None:
    pod = Pod().runs()
    pod.on(e.WorldMissing(), e.WorldSeen(WORLD), e.Terminate())
    assert reports(pod.did)[-1] == "Stopping"
    assert pod.core.leaving is None


# Rank tables ----------------------------------------------------------------------------------------------------------


def hccl_master(places: list[str]) -> Pod:
    """The master of a gang of Ascend devices, with all members joined but itself."""
    pod = Pod(0)
    pod.core.me = replace(pod.core.me, ranks=1, rank_table=True)
    pod.on(e.WorldSeen(WORLD), e.StoreOpened("10.0.0.1:5000"), e.StoreReady((1, 0), 6000, True))
    for index, place in enumerate(places):
        pod.on(e.MemberHello(index, e.Hello(index, 1, f"uid-{index}", place)))
    pod.on(e.MemberStatus(1, e.Status(1, 0, "joining")))
    return pod


def devices(index: int, ip: str) -> str:
    return json.dumps({"pod": f"j-{index}-1", "server": f"n{index}", "host": "", "ip": "", "superPod": "",
                       "devices": [["0", ip, ""]]})


def test_the_rank_table_goes_to_those_who_ask_and_starts_them() -> None:
    pod = hccl_master([devices(0, "1.1.1.1"), devices(1, "1.1.1.2")])
    start = found(pod.on(e.MemberStatus(0, e.Status(1, 0, "joining"))), e.Tell)[-1].gang.start
    assert start is not None
    assert start.table
    member = Pod(1)
    member.on(e.WorldSeen(WORLD), e.Linked())
    told = e.GangSeen(e.GangState(1, 0, start))
    (ask,) = found(member.on(told), e.AskTable)
    assert found(member.on(told), e.AskTable) == [ask]  # the heartbeat's answer: it may have been lost
    (answer,) = found(pod.on(e.MemberAsks(1, ask.table, ask.have, ask.at)), e.SendPart)
    (run,) = found(member.on(e.TablePart(answer.part)), e.StartRanks)
    assert run.table == (devices(0, "1.1.1.1"), devices(1, "1.1.1.2"))
    assert member.on(e.TablePart(answer.part)) == []  # it came twice
    # The next generation has the same members: nothing to fetch.
    member.on(e.WorldSeen(replace(WORLD, generation=2)), e.RanksGone())
    assert found(member.on(e.GangSeen(e.GangState(2, 0, start))), e.StartRanks)


def test_an_invalid_address_fails_the_job() -> None:
    pod = hccl_master([devices(0, "1.1.1.1"), devices(1, "-.-.-.-")])
    pod.on(e.MemberStatus(0, e.Status(1, 0, "joining")))
    failure = last_report(pod)["failure"]
    assert (failure["exitCode"], failure["root"], failure["rank"]) == (78, True, 1)
    assert "pod j-1-1, node n1, device 0: device_ip is '-.-.-.-'" in failure["reason"]
    assert not found(pod.did, e.StartRanks)


def test_devices_that_nobody_knows_of_are_no_reason_to_wait() -> None:
    pod = hccl_master([devices(0, "1.1.1.1"), ""])
    did = pod.on(e.MemberStatus(0, e.Status(1, 0, "joining")))
    assert found(did, e.Tell)[-1].gang.start == e.Start("10.0.0.1", 6000, True, "")
    assert any("no rank table is written: 1 of 2 pods" in log.text for log in found(did, e.Log))


# MindSpore's scheduler ------------------------------------------------------------------------------------------------


def scheduling() -> Pod:
    """The pod of rank 0 of a MindSpore job: two ranks, and the scheduler as the third process."""
    pod = Pod(0)
    pod.core.me = replace(pod.core.me, runtime="mindspore")
    return pod.runs()


def ends(pod: Pod, local: int, code: int) -> list[e.Action]:
    return pod.on(e.RankExited((1, 0), local, e.Exit(0, code, True, "why", "text")))


def test_the_pod_of_the_scheduler_has_finished_when_the_scheduler_has() -> None:
    pod = scheduling()
    ends(pod, 0, 0)
    ends(pod, 1, 0)
    assert pod.core.state == "run"
    ends(pod, 2, 1)  # missed a worker that had left already
    assert pod.core.state == "finished"


def test_a_scheduler_that_never_ends_is_stopped() -> None:
    pod = scheduling()
    ends(pod, 0, 0)
    ends(pod, 1, 0)
    assert found(pod.after(DONE_WITHIN), e.KillRanks)
    assert pod.core.state == "finished"


def test_a_scheduler_that_fails_fails_its_pod() -> None:
    pod = scheduling()
    assert reports(ends(pod, 2, 1)) == ["RankFailed"]
    assert pod.core.state == "failed"


def test_ranks_that_saved_do_not_wait_long_for_the_scheduler() -> None:
    pod = scheduling()
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    ends(pod, 0, 75)
    ends(pod, 1, 75)
    pod.after(WORLD.drain_seconds)
    assert pod.core.state == "drained"
    assert found(pod.did, e.SendStatus)[-1].status.saved


def running_master(size: int = 4) -> Pod:
    """A master whose gang trains."""
    pod = master(size)
    for index in range(1, size):
        joins(pod, index)
    pod.on(e.GangSeen(e.GangState(1, 0, e.Start("10.0.0.1", 6000, True))))
    for index in range(size):
        joins(pod, index, "running")
    return pod


def test_the_master_tells_of_members_that_do_not_come_back() -> None:
    pod = running_master()
    assert reports(pod.on(e.MemberGone(2))) == []
    assert reports(pod.after(0.9)) == []
    pod.on(e.MemberGone(3))
    assert reports(pod.after(0.2)) == ["PeerLost"]
    told = last_report(pod)
    assert (told["lost"], told["lostAt"]) == ([2, 3], "1970-01-01T00:18:20.000000Z")
    joins(pod, 3, "running")
    assert last_report(pod)["lost"] == [2]
    joins(pod, 2, "running")
    assert (last_report(pod)["kind"], "lost" in last_report(pod)) == ("Formed", False)


def test_a_member_that_comes_back_in_time_or_has_ended_is_not_lost() -> None:
    pod = running_master()
    pod.on(e.MemberGone(1))
    pod.after(0.5)
    joins(pod, 1, "running")
    joins(pod, 2, "finished")
    pod.on(e.MemberGone(2))
    assert reports(pod.after(5)) == []
    pod.on(e.MemberGone(1), e.WorldSeen(replace(WORLD, generation=2, size=4, address="10.0.0.1:5000")))
    assert "PeerLost" not in reports(pod.after(5)), "the next generation has other worries"


@pytest.mark.parametrize(("index", "tells"), [(1, True), (2, False), (3, True)])
def test_the_masters_neighbours_tell_of_its_loss(index: int, tells: bool) -> None:
    pod = Pod(index=index).runs(replace(WORLD, size=4, master_index=0))
    pod.on(e.Unlinked("connection lost"))
    assert reports(pod.after(2)) == (["PeerLost"] if tells else [])
    if tells:
        assert last_report(pod)["lost"] == [0]
        assert "lost" not in found(pod.on(e.Linked()), e.WriteReport)[0].spec


@pytest.mark.parametrize(("name", "index"), [("llama-7b-12-3", 12), ("j-0-1", 0), ("", -1), ("odd", -1)])
def test_the_index_in_a_pods_name(name: str, index: int) -> None:
    assert e.index_of(name) == index


# Spares and places ----------------------------------------------------------------------------------------------------

LOST = replace(WORLD, generation=2, incarnations={1: 2}, places={1: 2}, restarts=1)  # the spare 2 took the place of 1


def test_a_spare_waits_beside_the_gang_and_leaves_with_it() -> None:
    pod = Pod(index=2)
    did = pod.on(e.WorldSeen(WORLD))
    assert not found(did, e.Link), "whom the gang has no place for would be refused"
    assert not found(did, e.SendStatus)
    assert pod.core.state == "wait"
    assert found(pod.on(e.WorldSeen(replace(WORLD, phase="Drain", version=1))), e.Leave) == []
    assert found(pod.on(e.WorldSeen(replace(WORLD, phase="Done", version=2))), e.Leave) == [e.Leave(0, True)]


@pytest.mark.parametrize("first", [e.WorldSeen(WORLD), e.Imported()])
def test_a_spare_says_once_a_generation_that_it_is_warm(first: e.Event) -> None:
    pod = Pod(index=2)
    other = e.Imported() if isinstance(first, e.WorldSeen) else e.WorldSeen(WORLD)
    assert not reports(pod.on(first))
    assert reports(pod.on(other)) == ["Warm"]
    told = last_report(pod)
    assert (told["index"], told["incarnation"], told["generation"]) == (2, 1, 1)
    assert not reports(pod.on(e.WorldSeen(replace(WORLD, version=1))))
    did = pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    kinds = [type(action) for action in did if isinstance(action, (e.DropReport, e.WriteReport))]
    assert kinds == [e.DropReport, e.WriteReport], "what was not written yet is written for this generation"
    assert not reports(pod.on(e.WorldSeen(replace(LOST, generation=3)))), "a member"


def test_a_member_says_nothing_of_its_imports() -> None:
    pod = Pod(index=1)
    assert not reports(pod.on(e.WorldSeen(WORLD), e.Imported()))
    assert not reports(pod.runs().on(e.Imported()))


def test_a_fenced_spare_does_not_say_that_it_is_warm() -> None:
    pod = Pod(index=2)
    assert not reports(pod.on(e.WorldSeen(replace(WORLD, incarnations={2: 2})), e.Imported()))


def test_a_spare_told_to_end_says_nothing_and_leaves_at_once() -> None:
    pod = Pod(index=2)
    pod.on(e.WorldSeen(WORLD))
    did = pod.on(e.Terminate())
    assert not reports(did)
    assert found(did, e.Leave) == [e.Leave(143, True)]


def test_a_spare_that_is_promoted_takes_the_lost_place() -> None:
    pod = Pod(index=2)
    pod.on(e.WorldSeen(WORLD))
    did = pod.on(e.WorldSeen(LOST))
    assert found(did, e.Link) == [e.Link("10.0.0.1:5000", TOKEN, 2)]
    assert [action.status.state for action in found(did, e.SendStatus)] == ["joining"]
    did = pod.on(e.Linked(), e.GangSeen(e.GangState(2, 0, e.Start("h", 1, True))))
    assert found(did, e.StartRanks) == [e.StartRanks((2, 0), e.Start("h", 1, True), 2, 1, (), 1)]
    pod.on(e.RankExited((2, 0), 0, e.Exit(2, 1, True, "why")))
    told = last_report(pod)
    assert (told["index"], told["incarnation"], told["failure"]["rank"]) == (2, 1, 2), "a Report is of the pod"


def test_a_lost_pod_that_comes_back_finds_its_place_taken() -> None:
    pod = Pod(index=1).runs()
    did = pod.on(e.WorldSeen(LOST))
    assert found(did, e.KillRanks)
    assert not reports(did)
    assert found(pod.on(e.RanksGone()), e.Leave) == [e.Leave(143, False)]


def test_a_spare_in_place_0_reports_progress_and_the_master_stays() -> None:
    pod = Pod(index=2)
    pod.on(e.WorldSeen(replace(WORLD, master_uid="uid-1", address="10.0.0.2:5000")))
    pod.runs(replace(WORLD, generation=2, incarnations={0: 2}, places={0: 2}, master_uid="uid-1"))
    assert reports(pod.on(e.ProgressSeen((2, 0), {"step": 1}))) == ["Formed"]


def test_the_master_forms_a_gang_with_a_spare_in_it() -> None:
    pod = master()
    for index in (1, 2):
        joins(pod, index)
    world = replace(WORLD, size=3, address="", generation=2, incarnations={1: 2}, places={1: 3})
    pod.on(e.WorldSeen(world), e.RanksGone(), e.StoreReady((2, 0), 6001, True))
    joins(pod, 0, run=(2, 0))
    did = joins(pod, 1, run=(2, 0))
    assert found(did, e.Refuse), "the lost pod comes back"
    joins(pod, 2, run=(2, 0))
    assert pod.core.gang is not None
    assert pod.core.gang.missing() == [3]
    assert reports(joins(pod, 3, run=(2, 0))) == ["Formed"]


def test_a_smaller_gang_renumbers_its_pods() -> None:
    pod = Pod(index=2).runs(replace(WORLD, size=3))
    pod.on(e.WorldSeen(replace(WORLD, generation=2, size=2, incarnations={1: 2}, places={1: 2})), e.RanksGone())
    did = pod.on(e.GangSeen(e.GangState(2, 0, e.Start("h", 1, True))))
    assert [(order.place, order.size) for order in found(did, e.StartRanks)] == [(1, 2)]
    pod.on(e.WorldSeen(replace(WORLD, generation=3, size=1, incarnations={1: 2})))
    assert pod.core.state == "wait", "no place left for it: it stays, as a spare"


@pytest.mark.parametrize(("places", "index", "place"), [
    ({}, 0, 0), ({}, 2, 2), ({}, 3, None), ({1: 3}, 3, 1), ({1: 3}, 1, None), ({0: 2, 2: 0}, 0, 2),
    ({0: 2, 2: 0}, 2, 0),
])  # fmt: skip
def test_places(places: dict[int, int], index: int, place: int | None) -> None:
    world = replace(WORLD, size=3, places=places)
    assert world.place(index) == place
    assert place is None or world.members()[place] == index


def test_a_stopped_rank_is_killed_and_told_of_as_the_root() -> None:
    pod = Pod().runs()
    did = pod.on(e.HangSeen((1, 0), 3, "rank 3 is stopped", "step", 7, 5.5, "stack"))
    (report,) = found(did, e.WriteReport)
    failure = report.spec["failure"]
    assert (report.spec["kind"], failure["rank"], failure["root"], failure["hang"]) == ("RankFailed", 3, True, True)
    assert failure["at"] == timestamp(1000.0 + pod.now - 5.5)
    assert found(did, e.KillRanks)


def test_ranks_that_only_wait_are_left_alone() -> None:
    pod = Pod().runs()
    did = pod.on(e.HangSeen((1, 0), None, "all wait", "step", 7, 5.5, "stack", (("0", 2, 9, 8),)))
    (report,) = found(did, e.WriteReport)
    assert not found(did, e.KillRanks)
    assert report.spec["hang"]["positions"] == [{"group": "0", "rank": 2, "issued": 9, "completed": 8}]
    (report,) = found(pod.on(e.HangOver((1, 0))), e.WriteReport)
    assert "hang" not in report.spec
    assert not pod.on(e.HangSeen((0, 0), 3, "of an earlier run", "step", 7, 5.5))
