"""Who meets whom, and who is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from supervisor import events as e
from supervisor.checks import ANSWER_SECONDS, ROUND_SECONDS
from supervisor.events import Checked
from supervisor.pairs import Pair, Verdict, rounds, verdict
from unit.supervisor.core_pod import WORLD, Pod, found, last_report, reports


@pytest.mark.parametrize(("members", "plan"), [
    ([], []),
    ([7], []),
    ([0, 1], [[(0, 1)], [(0, 1)]]),
    ([0, 4, 2], [[(0, 4)], [(4, 2)], [(2, 0)]]),
    ([0, 1, 2, 3], [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]),
    ([0, 1, 2, 3, 4], [[(0, 1), (2, 3)], [(1, 2), (3, 4)], [(4, 0)]]),
])
def test_the_plan(members: list[int], plan: list[list[Pair]]) -> None:
    assert rounds(members) == plan


@settings(deadline=None)
@given(st.integers(3, 60))
def test_everybody_meets_two_others_and_nobody_two_at_once(count: int) -> None:
    plan = rounds(range(count))
    assert len(plan) == 2 + count % 2
    for pairs in plan:
        assert len({member for pair in pairs for member in pair}) == 2 * len(pairs)
    met = [frozenset(pair) for pairs in plan for pair in pairs]
    assert len(set(met)) == len(met) == count
    assert all(sum(member in pair for pair in met) == 2 for member in range(count))


def judged(count: int, bad: set[int], silent: bool = False) -> Verdict:
    """Every check in which a bad member takes part fails at both; a silent one does not even say so."""
    plan = rounds(range(count))
    answers = {(number, member): Checked(number, not bad & set(pair), "wrong sum" if bad & set(pair) else "")
               for number, pairs in enumerate(plan, 1) for pair in pairs for member in pair
               if not (silent and member in bad)}
    return verdict(plan, answers)


@pytest.mark.parametrize(("count", "bad", "culprits", "words"), [
    (4, set(), [], "all 4 pairs passed"),
    (2, {1}, [], "2 of 2 pairs failed (index 0 with 1, 0 with 1: wrong sum)"),
    (3, {1}, [1], "index 1 failed with index 0 and index 2: wrong sum"),
    (3, {0, 1}, [], "nobody is blamed"),
    (4, {0}, [0], "index 0 failed with index 1 and index 3"),
    (4, {0, 1}, [0, 1], "index 0 failed"),
    (4, {0, 2}, [], "4 of 4 pairs failed"),  # 1 and 3 look the same
    (5, {0, 2}, [0, 2], "index 2 failed with index 3 and index 1"),  # 1 has met only these two
    (9, {0, 3, 6}, [], "3 of 9 members failed with both their partners, too many at once"),
])
def test_the_verdict(count: int, bad: set[int], culprits: list[int], words: str) -> None:
    made = judged(count, bad)
    assert made.culprits == culprits
    assert words in made.reason
    assert len(made.reason) < 1024


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 40), st.sets(st.integers(0, 39), min_size=1, max_size=4), st.booleans())
def test_nobody_who_is_well_is_blamed(count: int, bad: set[int], silent: bool) -> None:
    assume(max(bad) < count)
    made = judged(count, bad, silent)
    assert set(made.culprits) <= bad
    if len(bad) == 1 or (len(bad) == 2 and count >= 5):
        assert set(made.culprits) == bad


def broken_between(count: int, apart: set[frozenset[int]]) -> Verdict:
    """All are well; these pairs cannot reach each other."""
    plan = rounds(range(count))
    return verdict(plan, {(number, member): Checked(number, frozenset(pair) not in apart, "no answer")
                          for number, pairs in enumerate(plan, 1) for pair in pairs for member in pair})


@pytest.mark.parametrize(("count", "apart", "culprits"), [
    (3, [{1, 2}], [2]),
    (3, [{0, 2}], [2]),  # the master stays
    (3, [{0, 1}, {1, 2}], [1]),  # which is not to be told from a node that is not well
    (6, [{1, 2}], [2]),
    (6, [{1, 2}, {4, 5}], [2, 5]),
    (9, [{0, 1}, {3, 4}, {6, 7}], []),
])
def test_one_of_two_goes_elsewhere_if_the_network_is_broken_between_them(count: int, apart: list[set[int]],
                                                                         culprits: list[int]) -> None:
    made = broken_between(count, set(map(frozenset, apart)))
    assert made.culprits == culprits
    assert len(made.failed) == len(apart)


def test_two_that_failed_once_with_each_other_are_let_be() -> None:
    plan = rounds([0, 1])
    answers = {(number, member): Checked(number, number == 1) for number in (1, 2) for member in (0, 1)}
    assert verdict(plan, answers).culprits == []


def test_a_partner_that_never_answers() -> None:
    assert "index 1 failed with index 0 and index 2: no answer" in judged(3, {1}, silent=True).reason


# In the state machine -------------------------------------------------------------------------------------------------

CHECKED = replace(WORLD, size=3, check="Pairs", address="")


def joins(pod: Pod, index: int, checked: Checked | None = None, checks: bool = True) -> list[e.Action]:
    return pod.on(e.MemberHello(index, e.Hello(index, 1, f"uid-{index}", checks=checks)),
                  e.MemberStatus(index, e.Status(1, 0, "joining", checked=checked)))


def master(world: e.World = CHECKED, ready: bool = True) -> Pod:
    """The master's pod, its own member connected."""
    pod = Pod(index=0, ranks=1)
    pod.on(e.WorldSeen(world), e.StoreOpened("10.0.0.1:5000"), e.StoreReady((1, 0), 6000, ready), e.Linked())
    return pod


def orders(did: list[e.Action]) -> dict[int, tuple[int, int, int]]:
    """By member: round, rank and partner of the check it was last told of."""
    return {action.connection: (check.round, check.rank, check.peer) for action in found(did, e.Tell)
            if (check := action.gang.check) is not None}


def starts(did: list[e.Action]) -> bool:
    return any(action.gang.start is not None for action in found(did, e.Tell))


def rounds_of(pod: Pod, bad: int | None) -> list[e.Action]:
    """All three rounds of a gang of three."""
    did = []
    for number, (one, other) in ((1, (0, 1)), (2, (1, 2)), (3, (2, 0))):
        passed = bad not in (one, other)
        for member in (one, other):
            did = joins(pod, member, Checked(number, passed, "" if passed else "wrong sum"))
    return did


def test_the_ranks_start_once_all_pairs_have_passed() -> None:
    pod = master()
    joins(pod, 0)
    assert not orders(joins(pod, 1))
    did = joins(pod, 2)
    assert orders(did) == {0: (1, 0, 1), 1: (1, 1, 0)}
    assert not starts(did)
    joins(pod, 0, Checked(1, True))
    assert orders(joins(pod, 1, Checked(1, True))) == {1: (2, 0, 2), 2: (2, 1, 1)}
    did = rounds_of(pod, None)
    assert starts(did)
    assert reports(did) == ["Formed"]
    assert last_report(pod)["check"] == {"pairs": 3, "failed": 0, "culprits": [], "reason": "all 3 pairs passed"}


def test_a_culprit_is_told_of_and_nobody_starts() -> None:
    pod = master()
    for index in range(3):
        joins(pod, index)
    did = rounds_of(pod, bad=2)
    assert reports(did) == ["Checked"]
    assert last_report(pod)["check"]["culprits"] == [2]
    assert not starts(pod.did)
    assert "formedAt" not in last_report(pod)
    did = pod.after(ANSWER_SECONDS + 1)
    assert starts(did), "an operator that does not answer must not keep the job from starting"


def test_a_new_generation_ends_the_check() -> None:
    pod = master()
    for index in range(3):
        joins(pod, index)
    rounds_of(pod, bad=2)
    did = pod.on(e.WorldSeen(replace(CHECKED, generation=2, check="None", incarnations={2: 2})),
                 e.StoreReady((2, 0), 6001, True))
    did += pod.after(ANSWER_SECONDS + ROUND_SECONDS)
    assert not starts(did)
    assert "check" not in last_report(pod) or last_report(pod)["generation"] == 1


def test_a_round_without_answers_has_an_end() -> None:
    pod = master()
    for index in range(3):
        joins(pod, index)
    assert orders(pod.after(ROUND_SECONDS - 1)) == {}
    assert orders(pod.after(2)) == {1: (2, 0, 2), 2: (2, 1, 1)}
    did = pod.after(2 * ROUND_SECONDS)
    assert starts(did)
    assert last_report(pod)["check"]["failed"] == 3
    assert "no answer" in last_report(pod)["check"]["reason"]
    assert not [kind for kind in reports(pod.did) if kind == "Missing"], "they have joined all the while"


@pytest.mark.parametrize(("ready", "able"), [(False, (True, True, True)), (True, (True, False, False))],
                         ids=["no torch", "older supervisors"])
def test_who_cannot_be_checked_starts(ready: bool, able: tuple[bool, ...]) -> None:
    pod = master(ready=ready)
    for index in range(3):
        did = joins(pod, index, checks=able[index])
    assert starts(did)
    assert not orders(pod.did)


def test_a_member_answers_when_nothing_of_its_check_is_left() -> None:
    pod = Pod(index=1, ranks=1)
    pod.on(e.WorldSeen(replace(WORLD, check="Pairs")), e.Linked())
    order = e.PairOrder(1, 1, 0, "10.0.0.1", 6000)
    told = e.GangSeen(e.GangState(1, 0, check=order))
    assert found(pod.on(told, told), e.CheckPair) == [e.CheckPair((1, 0), order)]
    assert found(pod.on(e.PairChecked((1, 0), Checked(1, False, "wrong sum"))), e.KillRanks)
    (status,) = found(pod.on(e.RanksGone()), e.SendStatus)
    assert (status.status.state, status.status.checked) == ("joining", Checked(1, False, "wrong sum"))
    assert not found(pod.on(told), e.CheckPair), "the same round again"
    pod.on(e.GangSeen(e.GangState(1, 0, check=replace(order, round=2))))
    did = pod.on(e.WorldSeen(replace(WORLD, generation=2)))
    assert found(did, e.KillRanks)
    assert found(did, e.SendStatus)[-1].status.state == "stopping", "a check is not over before its process is gone"
    did = pod.on(e.PairChecked((1, 0), Checked(2, True)), e.RanksGone())
    assert found(did, e.SendStatus)[-1].status == e.Status(2, 0, "joining", host=pod.core.me.pod_ip)


def test_a_drain_does_not_wait_for_a_check() -> None:
    pod = Pod(index=1, ranks=1)
    pod.on(e.WorldSeen(replace(WORLD, check="Pairs")), e.Linked(),
           e.GangSeen(e.GangState(1, 0, check=e.PairOrder(1, 1, 0, "10.0.0.1", 6000))))
    assert found(pod.on(e.WorldSeen(replace(WORLD, check="Pairs", phase="Drain"))), e.KillRanks)
    assert found(pod.on(e.RanksGone()), e.SendStatus)[-1].status.state == "drained"
