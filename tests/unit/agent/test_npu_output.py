"""Outputs of npu-smi and hccn_tool, as each generation prints them."""

from __future__ import annotations

import pytest
from trainyard.agent.npu_output import address, addresses, health, link_is_up, mapping, numbers, table, words
from trainyard.agent.types import Unreadable
from unit.agent.recorded import recorded


@pytest.mark.parametrize(("file", "count", "odd"), [
    ("info-910a.txt", 8, {(5, 0): "Alarm"}),
    ("info-910b.txt", 8, {(2, 0): "Warning"}),
    ("info-a3.txt", 16, {(1, 1): "Critical", (3, 0): "UNKNOWN"}),
    ("info-950.txt", 8, {(7, 0): "Alarm"}),
])
def test_the_table_of_each_generation(file: str, count: int, odd: dict[tuple[int, int], str]) -> None:
    found = table(recorded(file))
    assert len(found) == count
    assert {place: state for place, state in found.items() if state != "OK"} == odd


def test_a_wider_table_is_read_as_well() -> None:
    narrow = recorded("info-a3.txt")
    wide = narrow.replace("| Health        |", "| Health             |").replace(" OK   ", " OK        ")
    assert table(wide) == table(recorded("info-a3.txt"))


@pytest.mark.parametrize(("file", "physical", "takes_chip"), [
    ("map-910.txt", {(number, 0): number for number in range(8)}, True),
    ("map-a3.txt", {(number // 2, number % 2): number for number in range(16)}, True),
    ("map-950.txt", {(number, 0): number for number in range(8)}, False),
])
def test_the_numbers_of_the_chips(file: str, physical: dict[tuple[int, int], int],
                                  takes_chip: bool) -> None:
    found = mapping(recorded(file))
    assert {chip.place: chip.physical for chip in found.chips} == physical
    assert found.takes_chip == takes_chip
    assert all(chip.name.startswith("Ascend") for chip in found.chips)


def test_a_node_without_cards() -> None:
    assert mapping("There is no NPU card on this server.\n").chips == ()


RUBBISH = ["", "\n", "Segmentation fault", "dcmi module initialize failed. ret is -8005\n", "|||||\n|\n",
           "\x00\xff|NPU|", "| NPU   Name | Health |\n", "+==+\n| 0 910B | OK |\n| 0 | x |\n+==+\n"]


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_is_named_and_never_taken_for_devices(text: str) -> None:
    for read in (table, mapping, health):
        with pytest.raises(Unreadable) as raised:
            read(text)
        assert raised.value.reason == "ToolUnreadable"
        assert "expected" in raised.value.message


def test_a_table_that_is_cut_short_anywhere_is_not_believed() -> None:
    whole = recorded("info-a3.txt")
    full = table(whole)
    for end in range(0, len(whole) - 1, 7):
        try:
            found = table(whole[:end])
        except Unreadable:
            continue
        assert found.items() <= full.items()  # whole lines at least; the backend waits for a second look
        assert whole[:end].rstrip("\n").endswith("+")


def test_a_chip_twice_is_not_believed() -> None:
    with pytest.raises(Unreadable, match="card 0 chip 0 once"):
        table(recorded("info-910a.txt").replace("| 1     910B ", "| 0     910B "))
    with pytest.raises(Unreadable, match="every physical number once"):
        mapping(recorded("map-910.txt").replace("1                              Ascend",
                                                "0                              Ascend"))


def test_health() -> None:
    assert health(recorded("health-ok.txt")).codes == ()
    two = health(recorded("health-two.txt"))
    assert two.state == "Alarm"
    assert [code for code, _ in two.codes] == ["80E18402", "A8028801"]
    assert two.codes[0][1].startswith("node type=SoC")
    assert two.codes[1][1] == "hbm rows used up"
    assert health("NPU ID : 0\nHealth : OK\nError Code : NA\n").state == "OK"
    with pytest.raises(Unreadable, match="hexadecimal"):
        health("Health Status : Alarm\nError Code : oh no\n")


def test_texts_that_do_not_match_the_codes_are_dropped() -> None:
    assert health("Health Status : Alarm\nError Code : 1A 2B\nError Information : one\n").codes == (
        ("1A", ""), ("2B", ""))


def test_counts_and_words() -> None:
    assert numbers(recorded("ecc-errors.txt"))["HBM Double Bit Error Count"] == 3
    assert numbers(recorded("spod-info.txt")) == {
        "SDID": 16777216, "Super Pod Size": 384, "Super Pod ID": 3, "Server Index": 4}
    assert words(recorded("board-910a.txt"))["PCI Device ID"] == "0xD801"


def test_addresses() -> None:
    assert addresses("address_0=192.168.1.10\nnetmask_0=255.255.0.0\naddress_1=-.-.-.-\n#address_2=1.2.3.4\n"
                     "address_3 = 0.0.0.0\naddress_4=fd00::4\n") == {0: "192.168.1.10", 4: "fd00::4"}
    assert address("ipaddr:10.0.0.11\nnetmask:255.255.255.0\n") == "10.0.0.11"
    assert address("ipaddr:-.-.-.-\n") == ""
    assert address("hccn_tool is busy, please try again\n") == ""


@pytest.mark.parametrize(("text", "up"), [("link status: UP\n", True), ("link status: DOWN", False), ("busy", None)])
def test_links(text: str, up: bool | None) -> None:
    assert link_is_up(text) is up


@pytest.mark.parametrize("number", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", "1e3"])
def test_what_looks_like_a_number_and_is_none_is_not_taken_for_one(number: str) -> None:
    assert numbers(f"SDID : {number}") == {}
    with pytest.raises(Unreadable):
        mapping(f"NPU ID  Chip ID  Chip Logic ID  Chip Name\n{number} 0 0 x\n")
    with pytest.raises(Unreadable):
        table(recorded("info-910a.txt").replace("| 3     910B", f"| {number}     910B"))


def test_more_chips_than_a_node_can_have_are_not_believed() -> None:
    lines = "".join(f"{card} 0 {card} Ascend\n" for card in range(257))
    with pytest.raises(Unreadable, match="at most 256"):
        mapping("NPU ID  Chip ID  Chip Logic ID  Chip Name\n" + lines)
