"""How readings become what NodeDevices says: the rules, one a test."""

from __future__ import annotations

from datetime import timedelta

import pytest
from trainyard.agent.faults import FaultTable, Probation
from trainyard.agent.serving import Served, serve
from trainyard.api.devices import Level, Order
from trainyard.api.times import stamp
from unit.agent.devices import START, TABLE, Life, facts, fault

HOUR, DAY = 3600, 86400


def when(second: float) -> str:
    return stamp(START + timedelta(seconds=second))


def order(action: str, second: float = 0, until: float | None = None, device: str = "Ascend910-0") -> Order:
    return Order.model_validate({"device": device, "action": action, "by": "Administrator", "at": when(second),
                                 "until": None if until is None else when(until)})


@pytest.mark.parametrize(("level", "free", "held"), [
    (None, "Healthy", "Healthy"),
    ("NotHandleFault", "Healthy", "Healthy"),
    ("SubHealthFault", "Healthy", "Healthy"),
    ("RestartRequest", "Unhealthy", "Unhealthy"),
    ("RestartBusiness", "Unhealthy", "Unhealthy"),
    ("FreeRestartNPU", "Unhealthy", "Unhealthy"),
    ("RestartNPU", "Unhealthy", "Unhealthy"),
    ("PreSeparateNPU", "Unhealthy", "Healthy"),
    ("SeparateNPU", "Unhealthy", "Unhealthy"),
])
def test_what_kubelet_is_told(level: Level | None, free: str, held: str) -> None:
    faults = [fault("F", level)] if level else []
    assert Life().at(0, *faults).health == free
    life = Life()
    life.hold()
    assert life.at(0, *faults).health == held


def test_other_devices_are_not_touched_and_the_order_is_that_of_the_facts() -> None:
    life = Life()
    life.at(0, fault())
    assert [(status.id, status.health) for status in life.statuses] == [
        ("Ascend910-0", "Unhealthy"), ("Ascend910-1", "Healthy")]


def test_the_worst_fault_is_shown() -> None:
    status = Life().at(0, fault("80DE0207"), fault("80818C00"), fault("80E01801"))
    assert (status.code, status.level, status.faults) == ("80818C00", "SeparateNPU", 3)


@pytest.mark.parametrize(("severity", "level"), [
    ("minor", "NotHandleFault"), ("major", "SeparateNPU"), ("critical", "SeparateNPU"), ("", "SeparateNPU")])
def test_codes_that_the_table_does_not_list_go_by_severity(severity: str, level: str) -> None:
    assert Life().at(0, fault("DEADBEEF", severity=severity)).level == level


def test_codes_are_found_however_they_are_written() -> None:
    assert Life().at(0, fault("0x80e01801")).code == "80E01801"


def test_a_fault_counts_at_once_and_is_over_after_probation() -> None:
    life = Life()
    assert life.at(0).since == when(0)
    bad = life.at(10, fault())
    assert (bad.health, bad.since, bad.faults, bad.probation) == ("Unhealthy", when(10), 1, None)
    over = life.at(100)
    assert (over.health, over.probation, over.code, over.level) == ("Unhealthy", when(160), "80818C00", "SeparateNPU")
    assert life.at(159).health == "Unhealthy"
    well = life.at(160)
    assert (well.health, well.probation, well.code, well.level, well.since) == ("Healthy", None, "", None, when(160))
    assert well.faults == 1
    assert life.at(100 + DAY).history == []


def test_probation_grows_with_every_failure_of_a_day_up_to_the_longest() -> None:
    life, second, lengths = Life(), 0, []
    for _ in range(6):
        life.at(second, fault())
        status = life.at(second + 1)
        assert status.probation
        lengths.append((stamp(START + timedelta(seconds=second + 1)), status.probation))
        second += 4000
    assert [end for _, end in lengths] == [
        when(index * 4000 + 1 + length) for index, length in enumerate([60, 240, 960, 3600, 3600, 3600])]


def test_a_flap_during_probation_starts_a_longer_one() -> None:
    life = Life()
    life.at(0, fault())
    life.at(10)
    life.at(20, fault())
    assert life.at(30).probation == when(30 + 240)
    assert life.at(75).health == "Unhealthy"


def test_faults_that_overlap_are_one_failure() -> None:
    life = Life()
    life.at(0, fault("80818C00"))
    life.at(5, fault("80818C00"), fault("80E01801"))
    assert life.at(10).probation == when(70)


def test_failures_of_yesterday_do_not_lengthen_probation() -> None:
    life = Life()
    life.at(0, fault())
    life.at(10)
    life.at(DAY + 10, fault())
    assert life.at(DAY + 20).probation == when(DAY + 80)


def test_mild_faults_need_no_probation() -> None:
    life = Life()
    assert life.at(0, fault("80DE0207")).level == "SubHealthFault"
    status = life.at(5)
    assert (status.health, status.level, status.probation, status.faults) == ("Healthy", None, None, 1)


def test_faults_without_action_are_shown_but_neither_counted_nor_remembered() -> None:
    life = Life()
    shown = life.at(0, fault("80E21007"))
    assert (shown.code, shown.level, shown.faults, shown.history) == ("80E21007", "NotHandleFault", 0, [])
    assert life.at(1).code == ""


def test_twice_in_a_day_is_worse_and_asks_for_a_day_without_keeping_the_device_out_by_itself() -> None:
    life = Life()
    assert life.at(0, fault("80E01801")).level == "RestartBusiness"
    life.at(10)
    assert life.at(HOUR).health == "Healthy"
    there = life.at(20 * HOUR, fault("80E01801"))
    assert (there.level, [record.hold for record in there.history]) == ("SeparateNPU", [None, None])
    over = life.at(20 * HOUR + 10)
    assert (over.level, over.probation) == ("SeparateNPU", when(20 * HOUR + 10 + 240)), "as after any second failure"
    assert [record.hold for record in over.history] == [None, when(20 * HOUR + 10 + DAY)]
    well = life.at(20 * HOUR + 10 + 240)
    assert (well.health, well.level, well.history) == ("Healthy", None, over.history)
    again = life.at(30 * HOUR, fault("80E01801"))
    assert (again.level, [record.hold for record in again.history]) == ("SeparateNPU", [None, None, None])
    assert [record.hold for record in life.at(30 * HOUR + 5).history] == [None, None, when(30 * HOUR + 5 + DAY)]


def test_mild_faults_that_come_too_often_need_a_probation_like_bad_ones() -> None:
    rule = {"codes": ["80DE0207"], "times": 2, "level": "SeparateNPU", "holdHours": 1}
    life, mild = Life(table=TABLE.under(FaultTable.model_validate({"repeated": [rule]}))), fault("80DE0207")
    assert life.at(0, mild).health == "Healthy"
    assert life.at(10).health == "Healthy"
    assert (life.at(20, mild).health, life.statuses[0].level) == ("Unhealthy", "SeparateNPU")
    over = life.at(30)
    assert (over.health, over.probation, over.history[-1].hold) == ("Unhealthy", when(90), when(30 + HOUR))
    assert life.at(90).health == "Healthy"
    life.orders = [order("Release", 95)]
    assert life.at(96).history == []


def test_twice_in_more_than_a_day_does_not_separate() -> None:
    life = Life()
    life.at(0, fault("80E01801"))
    life.at(10)
    assert life.at(DAY + 60, fault("80E01801")).level == "RestartBusiness"


def test_a_link_that_is_down_for_long_separates_and_one_that_blinks_does_not() -> None:
    life, link = Life(), fault("81078603")
    down = life.at(0, link)
    assert (down.health, down.level, down.network) == ("Healthy", "NotHandleFault", False)
    assert life.at(19, link).health == "Healthy"
    separated = life.at(20, link)
    assert (separated.health, separated.level, separated.network) == ("Unhealthy", "PreSeparateNPU", False)
    up = life.at(30)
    assert (up.health, up.network, up.probation) == ("Unhealthy", False, when(90))
    assert life.at(40, link).level == "PreSeparateNPU"
    life.at(50)
    assert life.at(109).network is False
    well = life.at(110)
    assert (well.health, well.network) == ("Healthy", True)
    assert len(well.history) == 1


def test_a_network_fault_keeps_out_of_the_network_alone_if_it_is_mild() -> None:
    life = Life()
    status = life.at(0, fault("N", "SubHealthFault", network=True))
    assert (status.health, status.network) == ("Healthy", False)
    assert life.at(1).network is True


def test_unreadable_is_unknown_and_well_again_at_once() -> None:
    life = Life()
    life.at(0)
    for status in (life.at(1, unread=True), life.at(2, lost=True)):
        assert (status.health, status.since) == ("Unknown", when(1))
    assert life.statuses[1].health == "Unknown"
    assert life.at(3).health == "Healthy"


def test_what_is_known_to_be_bad_stays_bad_unread() -> None:
    life = Life()
    life.at(0, fault())
    assert life.at(1, lost=True).health == "Unhealthy"
    assert life.at(DAY, lost=True).health == "Unhealthy"
    assert life.at(DAY + 5, fault()).history[0].began == when(0)


def test_probation_ends_in_unknown_if_nothing_can_be_read() -> None:
    life = Life()
    life.at(0, fault())
    life.at(10)
    assert life.at(200, lost=True).health == "Unknown"


def test_quarantine_keeps_new_work_off_and_lets_running_work_finish() -> None:
    life = Life(orders=[order("Quarantine", until=100)])
    life.hold()
    held = life.at(0)
    assert (held.health, held.quarantined) == ("Healthy", True)
    life.hold("")
    free = life.at(50)
    assert (free.health, free.quarantined, free.code) == ("Unhealthy", True, "")
    ended = life.at(100)
    assert (ended.health, ended.quarantined) == ("Healthy", False)


def test_quarantine_without_an_end_or_of_another_device() -> None:
    assert Life(orders=[order("Quarantine")]).at(30 * DAY).health == "Unhealthy"
    assert Life(orders=[order("Quarantine", device="Ascend910-1")]).at(0).health == "Healthy"


def test_release_forgets_what_was_over_and_nothing_else() -> None:
    life = Life()
    for second in (0, 20):
        life.at(second, fault("80E01801"))
        life.at(second + 10)
    life.orders = [order("Release", 40)]
    released = life.at(41)
    assert (released.health, released.faults, released.history) == ("Healthy", 0, [])
    assert life.at(50, fault("80E01801")).level == "RestartBusiness"
    assert life.at(60).probation == when(120)


def test_release_does_not_heal_a_fault_that_is_there() -> None:
    life = Life()
    life.at(0, fault())
    life.orders = [order("Release", 10)]
    assert life.at(11, fault()).health == "Unhealthy"


def test_a_milder_table_takes_effect_on_a_fault_that_is_there() -> None:
    life = Life()
    life.at(0, fault())
    own = FaultTable.model_validate({"codes": {"80818C00": {"level": "NotHandleFault"}}, "probation": {"seconds": 5}})
    life.table = TABLE.under(own)
    assert life.at(10, fault()).probation == when(15)
    status = life.at(15, fault())
    assert (status.health, status.level) == ("Healthy", "NotHandleFault")


def test_no_probation_at_all_if_the_table_says_so() -> None:
    life = Life(table=TABLE.model_copy(update={"probation": Probation(seconds=0)}))
    life.at(0, fault())
    assert life.at(1).health == "Healthy"


def test_what_is_kept_is_bounded_and_what_is_there_is_kept_first() -> None:
    life = Life()
    many = [fault(f"{number:X}", "RestartRequest") for number in range(40)]
    assert len(life.at(0, fault(), *many).history) == 16
    assert life.statuses[0].code == "80818C00"
    assert life.at(10).health == "Unhealthy"


def test_a_clock_that_was_set_back_keeps_nothing_out_for_long() -> None:
    life = Life()
    life.at(30 * DAY, fault())
    life.at(30 * DAY + 10)
    assert life.at(0).probation == when(60)
    assert life.at(30).probation == when(60), "it does not begin anew at every look"
    assert life.at(61).health == "Healthy"
    assert life.statuses[0].history[0].ended == when(0)


def told(life: Life) -> Served:
    return serve(facts(), life.statuses, {})["Ascend910-0"]


def test_kubelet_is_told_that_an_unreadable_device_in_use_is_well() -> None:
    life = Life()
    life.at(0, unread=True)
    assert not told(life).healthy
    life.hold()
    life.at(1, unread=True)
    assert told(life).healthy
    life.at(2, fault())
    assert not told(life).healthy
    life.at(3)
    life.at(500)
    assert told(life).healthy


def test_why_a_pod_may_not_have_it() -> None:
    life = Life()
    life.at(0)
    assert told(life).why == ""
    life.at(1, fault("80E01801"))
    assert told(life).why == "Ascend910-0 is unhealthy: 80E01801 RestartBusiness memory"
    life.at(2)
    assert "it works again and is on probation until" in told(life).why
    life.at(500, unread=True)
    assert told(life).why == "the health of Ascend910-0 cannot be read"
    life.orders = [order("Quarantine")]
    life.at(501)
    assert "quarantined" in told(life).why
