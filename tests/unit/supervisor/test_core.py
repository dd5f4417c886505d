"""The supervisor's rules, one by one (docs/protocol.md). No processes, no sockets, no clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from supervisor import events as e
from supervisor import ranks
from supervisor.core import DONE_WITHIN, EARLY_DRAIN, SETTLE, URGENT_EVERY
from supervisor.report import timestamp
from unit.supervisor.core_pod import TOKEN, WORLD, Pod, found, joins, last_report, master, reports


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


@pytest.mark.parametrize(("codes", "saved"), [((0, 0), False), ((143, -15), False), ((1, 75), False), ((75, 75), True)])
def test_exit_codes_of_ranks_that_were_asked_by_sigterm_say_only_whether_they_saved(codes: tuple[int, int],
                                                                                    saved: bool) -> None:
    pod = Pod().runs()
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")), e.RanksSignalled((1, 0)))
    did = pod.exits(*codes)
    assert found(did, e.KillRanks), "what they left behind ends"
    status = found(pod.on(e.RanksGone()), e.SendStatus)[-1].status
    assert (status.state, status.saved) == ("drained", saved)
    assert "RankFailed" not in reports(pod.did)
    after = Pod().runs()
    after.on(e.RanksSignalled((0, 9)))
    assert reports(after.exits(143)) == ["RankFailed"], "that was another run"


def test_a_rank_that_answers_sigterm_first_leaves_the_others_their_time() -> None:
    pod = Pod().runs()
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")), e.RanksSignalled((1, 0)))
    assert not found(pod.exits(143) + pod.after(15), e.KillRanks)


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


@pytest.mark.parametrize(("grace", "seconds"), [(30.0, 10.0), (12.0, 4.0), (600.0, 10.0)])
def test_ranks_are_asked_to_save_although_nobody_answers(grace: float, seconds: float) -> None:
    """The operator may be on the very node that is drained, or the API away."""
    pod = Pod()
    pod.core.me = replace(pod.core.me, grace=grace)
    pod.runs()
    pod.on(e.Terminate())
    assert not found(pod.after(seconds - 0.1), e.TouchDrain)
    assert found(pod.after(0.2), e.TouchDrain)
    pod.exits(75, 75)
    pod.on(e.RanksGone())
    assert "RankFailed" not in reports(pod.after(EARLY_DRAIN + 1 if grace > 30 else 0)), "it has said that it stops"
    assert found(pod.did, e.SendStatus)[-1].status.saved
    pod.on(e.WorldSeen(replace(WORLD, phase="Drain")))
    assert found(pod.on(e.GangSeen(e.GangState(1, 0, None, "drained"))), e.Leave) == [e.Leave(143, flush=True)]


def test_ranks_are_asked_once_if_drain_comes_in_time() -> None:
    pod = Pod().runs()
    did = pod.on(e.Terminate(), e.WorldSeen(replace(WORLD, phase="Drain")))
    assert len(found(did + pod.after(15), e.TouchDrain)) == 1


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


@pytest.mark.parametrize(("index", "near"), [(1, True), (2, False), (3, True)])
def test_the_masters_neighbours_alone_keep_a_quick_watch_on_it(index: int, near: bool) -> None:
    world = replace(WORLD, size=4, master_index=0)
    (link,) = found(Pod(index).on(e.WorldSeen(world)), e.Link)
    assert link == e.Link("10.0.0.1:5000", TOKEN, 4, near)
