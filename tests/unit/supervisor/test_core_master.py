"""The master's rules, one by one (docs/protocol.md): how a gang forms, ends, starts again, and misses its members."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from supervisor import events as e
from supervisor.core import DONE_WITHIN
from supervisor.store import status_from
from unit.supervisor.core_pod import TOKEN, WORLD, Pod, found, joins, last_report, master, reports


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


def test_no_attempt_without_a_member_that_has_saved_and_is_about_to_leave() -> None:
    pod = broken_without_api()
    joins(pod, 0, "drained", saved=True)
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


def test_whether_ranks_wait_is_told_with_the_lost_peer() -> None:
    pod = running_master()
    assert not reports(pod.on(e.StallSeen((1, 0), True))), "by itself it is nobody's business"
    pod.on(e.StallSeen((1, 0), False), e.MemberGone(2))
    pod.after(1.1)
    assert "stalled" not in last_report(pod)
    assert reports(pod.on(e.StallSeen((1, 0), True))) == ["PeerLost"]
    assert last_report(pod)["stalled"] is True
    assert not reports(pod.on(e.StallSeen((0, 3), False))), "of another run"
    assert reports(pod.on(e.StallSeen((1, 0), False))) == ["PeerLost"]
    assert "stalled" not in last_report(pod)
    joins(pod, 2, "running")
    pod.on(e.StallSeen((1, 0), True), e.MemberGone(2))
    assert not reports(pod.after(0.9)), "it may come back"
    pod.after(0.2)
    assert last_report(pod)["stalled"] is True
    pod.on(e.WorldSeen(replace(WORLD, generation=2, size=4, address="10.0.0.1:5000")))
    pod.on(e.ProgressSeen((2, 0), {"step": 1}))
    assert "stalled" not in last_report(pod)


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
