"""The fault table, and a cluster's own laid over it."""

from __future__ import annotations

import json

import pytest
from trainyard.agent.faults import FaultTable, normal, over_shipped, shipped
from trainyard.agent.types import Fault, Unreadable
from trainyard.api.devices import LEVELS


def test_the_shipped_table() -> None:
    table = shipped()
    assert len(table.codes) > 300
    assert {entry.level for entry in table.codes.values()} == set(LEVELS) - {"PreSeparateNPU"}
    assert all(code == normal(code) for code in table.codes)
    link = table.lasts("81078603")
    assert link is not None
    assert (link.down_seconds, link.up_seconds, link.level) == (20, 60, "PreSeparateNPU")
    assert table.codes["81078603"].network
    memory = table.repeats("80E01801")
    assert memory is not None
    assert (memory.times, memory.hours, memory.level) == (2, 24, "SeparateNPU")
    assert table.codes["80E01801"].level == "RestartBusiness"
    for codes in [rule.codes for rule in table.repeated] + [rule.codes for rule in table.lasting]:
        assert set(codes) <= set(table.codes)


@pytest.mark.parametrize(("written", "read"), [
    ("0x80e01801", "80E01801"), (" 80E01801 ", "80E01801"), ("DeviceLost", "DeviceLost"), ("0XA8", "A8")])
def test_how_codes_are_written(written: str, read: str) -> None:
    assert normal(written) == read


@pytest.mark.parametrize(("fault", "level", "network"), [
    (Fault("80E01801"), "RestartBusiness", False),
    (Fault("80E01801", level="SubHealthFault"), "SubHealthFault", False),
    (Fault("FFFF0000", severity="minor"), "NotHandleFault", False),
    (Fault("FFFF0000", severity="critical"), "SeparateNPU", False),
    (Fault("FFFF0000"), "SeparateNPU", False),
    (Fault("FFFF0000", severity="minor", network=True), "PreSeparateNPU", True),
    (Fault("81078603"), "NotHandleFault", True),
])
def test_what_a_fault_is(fault: Fault, level: str, network: bool) -> None:
    entry = shipped().entry(fault)
    assert (entry.level, entry.network) == (level, network)
    assert entry.text


def test_the_drivers_own_text_comes_first() -> None:
    assert shipped().entry(Fault("80E01801", text="as printed")).text == "as printed"


@pytest.mark.parametrize("empty", [None, "", "  \n", "# nothing but words\n\n  # more\n"])
def test_no_table_of_its_own(empty: str | None) -> None:
    assert over_shipped(empty) is shipped()


def test_a_cluster_lays_its_own_table_over() -> None:
    table = over_shipped("""
codes:
  81318008: {level: NotHandleFault, text: harmless here}   # eight digits, and still no number
  0xdeadbeef: {level: SeparateNPU, network: true}
repeated:
- {codes: [80E01801], times: 3, level: PreSeparateNPU}
probation: {seconds: 5}
unlisted: {critical: RestartNPU}
""")
    assert table.codes["81318008"].level == "NotHandleFault"
    assert table.codes["DEADBEEF"].network
    memory, other = table.repeats("80E01801"), table.repeats("80E38008")
    assert memory is not None
    assert (memory.times, memory.hours) == (3, 24)
    assert other is not None
    assert other.times == 2
    assert (table.probation.seconds, table.probation.factor) == (5, shipped().probation.factor)
    assert (table.unlisted.critical, table.unlisted.major) == ("RestartNPU", "SeparateNPU")
    assert table.lasting == shipped().lasting
    assert shipped().codes["81318008"].level == "RestartRequest"


def test_a_table_may_be_json() -> None:
    own = FaultTable.model_validate({"codes": {"A1": {"level": "SubHealthFault"}}})
    assert over_shipped(json.dumps(own.dump())).codes["A1"].level == "SubHealthFault"


@pytest.mark.parametrize(("text", "said"), [
    ("codes: [", "it is no valid YAML"),
    ("codes: " + "[" * 100000, "nested deeper than 32 levels"),
    ("codes: {A1: {level: SeparateNPU}, A1: {level: SubHealthFault}}", "'A1' is there twice"),
    ("- a\n- b", "expected an object with codes, repeated, lasting, unlisted, probation; found list"),
    ("codes: {A1: {level: Terrible}}", "codes.A1.level: Input should be 'NotHandleFault'"),
    ("codes: {A1: {levl: SeparateNPU}}", "codes.A1.levl: Extra inputs are not permitted"),
    ("repeated: [{codes: [A1], times: 1, level: SeparateNPU}]", "repeated.0.times: Input should be greater than"),
    ("lasting: [{codes: [A1], downSeconds: long, upSeconds: 1, level: SeparateNPU}]", "(found 'long')"),
    ("probation: {longestSeconds: 100000}", "probation.longestSeconds"),
    ("repeated: [{codes: [8.1318008e+07], times: 2, level: SeparateNPU}]", "put one of digits alone in quotes"),
    ("colour: blue", "colour"),
])
def test_an_invalid_table_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(Unreadable) as raised:
        over_shipped(text)
    assert raised.value.reason == "InvalidFaultTable"
    assert said in raised.value.message
    assert "stays in force" in raised.value.message
