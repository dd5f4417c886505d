"""Ranks that outlive a generation, rule by rule (supervisor/survivors.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from supervisor import events as e
from supervisor.survivors import JOIN_WITHIN, LEAVE_WITHIN
from unit.supervisor.core_pod import WORLD, Pod, found, last_report, reports

NEXT = replace(WORLD, generation=2)
START = e.Start("h", 1, True)


def states(did: list[e.Action]) -> list[str]:
    return [action.status.state for action in found(did, e.SendStatus)]


def told_to_leave() -> Pod:
    pod = Pod(keeps=True).runs()
    did = pod.on(e.WorldSeen(NEXT))
    assert (found(did, e.KeepRanks), found(did, e.KillRanks), states(did)) == ([e.KeepRanks()], [], ["stopping"])
    return pod


def kept() -> Pod:
    pod = told_to_leave()
    assert states(pod.on(e.RanksLeft())) == ["joining"]
    return pod


def test_ranks_leave_join_and_are_told_of_the_next_run() -> None:
    pod = kept()
    assert found(pod.after(1000.0), e.KillRanks) == []  # they may have to wait long for the others
    did = pod.on(e.GangSeen(e.GangState(2, 0, START)))
    assert found(did, e.StartRanks) == [e.StartRanks((2, 0), START, 2, 0, place=1)]
    assert states(did) == ["running"]
    pod.on(e.RanksJoined((2, 0)))
    assert found(pod.after(1000.0), e.KillRanks) == []
    assert reports(pod.exits(-9, run=(2, 0))) == ["RankFailed"]


@pytest.mark.parametrize("world", [
    replace(NEXT, size=3), replace(NEXT, places={1: 2, 0: 0}),
    replace(NEXT, phase="Drain"), replace(NEXT, phase="Done"), replace(NEXT, check="Pairs"),
], ids=["size", "place", "drain", "done", "checked nodes"])
def test_of_another_gang_they_take_no_part(world: e.World) -> None:
    did = Pod(keeps=True).runs().on(e.WorldSeen(world))
    assert (len(found(did, e.KillRanks)), found(did, e.KeepRanks)) == (1, [])


def test_ranks_that_lost_one_of_their_own_start_anew() -> None:
    pod = Pod(keeps=True).runs()
    pod.on(e.RankExited((1, 0), 0, e.Exit(2, 1, False, "Connection closed by peer")))
    did = pod.on(e.WorldSeen(NEXT))
    assert (len(found(did, e.KillRanks)), found(did, e.KeepRanks)) == (1, [])


def test_ranks_that_hang_start_anew() -> None:
    pod = Pod(keeps=True).runs()
    hang = e.HangSeen((1, 0), None, "all ranks of the pod wait", "step", 7, 5.0)
    pod.on(hang)
    assert found(pod.on(e.WorldSeen(NEXT)), e.KeepRanks) == []
    pod = Pod(keeps=True).runs()
    pod.on(hang, e.HangOver((1, 0)))
    assert found(pod.on(e.WorldSeen(NEXT)), e.KeepRanks) == [e.KeepRanks()]


def test_ranks_that_do_not_leave_in_time_start_anew() -> None:
    pod = told_to_leave()
    assert found(pod.after(LEAVE_WITHIN - 0.1), e.KillRanks) == []
    assert len(found(pod.after(0.1), e.KillRanks)) == 1
    assert pod.on(e.RanksLeft()) == []  # too late
    assert states(pod.on(e.RanksGone())) == ["joining"]
    assert found(pod.on(e.GangSeen(e.GangState(2, 0, START))), e.StartRanks)
    assert found(pod.after(1000.0), e.KillRanks) == []


def test_ranks_that_cannot_leave_start_anew() -> None:
    pod = told_to_leave()
    assert len(found(pod.on(e.RanksLeft("rank 2 is writing a checkpoint")), e.KillRanks)) == 1


def test_ranks_that_end_while_they_wait_start_anew() -> None:
    pod = kept()
    did = pod.on(e.RanksLeft("rank 2 has ended"))
    assert (len(found(did, e.KillRanks)), states(did)) == (1, ["stopping"])
    assert not found(pod.on(e.GangSeen(e.GangState(2, 0, START))), e.StartRanks)
    assert states(pod.on(e.RanksGone())) == ["joining"]  # which the master answers
    assert found(pod.on(e.GangSeen(e.GangState(2, 0, START))), e.StartRanks)


def test_a_third_generation_finds_them_waiting() -> None:
    pod = kept()
    did = pod.on(e.WorldSeen(replace(WORLD, generation=3)))
    assert (found(did, e.KillRanks), found(did, e.KeepRanks), states(did)) == ([], [], ["joining"])
    assert found(pod.on(e.GangSeen(e.GangState(3, 0, START))), e.StartRanks)


def test_a_third_generation_waits_for_them_to_leave_no_longer() -> None:
    pod = told_to_leave()
    pod.after(LEAVE_WITHIN / 2)
    did = pod.on(e.WorldSeen(replace(WORLD, generation=3)))
    assert (found(did, e.KillRanks), found(did, e.KeepRanks)) == ([], [])
    assert len(found(pod.after(LEAVE_WITHIN / 2), e.KillRanks)) == 1


def test_ranks_that_do_not_make_their_groups_in_time_have_failed_and_none_is_kept_again() -> None:
    pod = kept()
    pod.on(e.GangSeen(e.GangState(2, 0, START)))
    did = pod.after(JOIN_WITHIN)
    assert (len(found(did, e.KillRanks)), reports(did)) == (1, ["RankFailed"])
    assert last_report(pod)["failure"]["reason"].endswith("has not made its groups within 60 s")
    pod.on(e.RanksGone(), e.WorldSeen(replace(WORLD, generation=3)), e.GangSeen(e.GangState(3, 0, START)))
    did = pod.on(e.WorldSeen(replace(WORLD, generation=4)))
    assert (len(found(did, e.KillRanks)), found(did, e.KeepRanks)) == (1, [])


def test_without_torchs_store_in_a_supervisor_they_start_anew() -> None:
    pod = kept()
    start = replace(START, agent_store=False)
    did = pod.on(e.GangSeen(e.GangState(2, 0, start)))
    assert (len(found(did, e.KillRanks)), found(did, e.StartRanks)) == (1, [])
    pod.on(e.RanksGone())
    assert found(pod.on(e.GangSeen(e.GangState(2, 0, start))), e.StartRanks)


@pytest.mark.parametrize("event", [
    e.Terminate(), e.Unauthorized(),
    e.WorldSeen(replace(NEXT, phase="Drain")), e.WorldSeen(replace(NEXT, phase="Done")),
], ids=["sigterm", "401", "drain", "done"])
def test_waiting_ranks_end_with_their_pods_part(event: e.Event) -> None:
    for pod in (kept(), told_to_leave()):
        assert len(found(pod.on(event), e.KillRanks)) == 1
        pod.on(e.RanksGone())
        assert (pod.core.alive, pod.core.kept) == (False, False)
