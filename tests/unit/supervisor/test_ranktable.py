"""HCCL's rank table: what pods say of themselves, the file, and how it travels. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor import ranktable

POD = {"TRAINYARD_POD": "j-0-1", "TRAINYARD_POD_IP": "10.0.0.1", "TRAINYARD_NODE": "node-a",
       "TRAINYARD_HOST_IP": "172.16.0.1"}  # fmt: skip


def device(number: int, ip: str, **more: str) -> dict[str, Any]:
    return {"id": f"Ascend910-{number}", "physical": number, "ip": ip, "superDevice": "", "superPod": "", "server": "",
            **more}  # fmt: skip


def place(index: int, *ips: str, node: str = "", super_pod: str = "") -> str:
    devices = [device(number, ip, superPod=super_pod, superDevice=str(100 + number) if super_pod else "")
               for number, ip in enumerate(ips)]
    named = {**POD, "TRAINYARD_POD": f"j-{index}-1", "TRAINYARD_POD_IP": f"10.0.0.{index}",
             "TRAINYARD_NODE": node or f"node-{index}", "TRAINYARD_DEVICES": json.dumps(devices)}  # fmt: skip
    made = ranktable.place_of(named)
    assert made is not None
    return made


def test_the_table_of_two_nodes() -> None:
    table = ranktable.check([place(0, "192.168.101.1", "192.168.101.2"), place(1, "192.168.102.1", "192.168.102.2")], 2)
    assert ranktable.render(table) == {
        "status": "completed", "version": "1.0", "server_count": "2", "server_list": [
            {"server_id": "node-0", "host_ip": "172.16.0.1", "container_ip": "10.0.0.0", "device": [
                {"device_id": "0", "device_ip": "192.168.101.1", "rank_id": "0"},
                {"device_id": "1", "device_ip": "192.168.101.2", "rank_id": "1"}]},
            {"server_id": "node-1", "host_ip": "172.16.0.1", "container_ip": "10.0.0.1", "device": [
                {"device_id": "0", "device_ip": "192.168.102.1", "rank_id": "2"},
                {"device_id": "1", "device_ip": "192.168.102.2", "rank_id": "3"}]},
        ],
    }  # fmt: skip


def test_super_pods_make_it_version_1_2_unless_told_otherwise() -> None:
    table = ranktable.check([place(0, "1.1.1.1", super_pod="0"), place(1, "1.1.1.2", super_pod="0"),
                             place(2, "1.1.1.3", super_pod="7")], 1)
    made = ranktable.render(table)
    assert made["version"] == "1.2"
    assert made["server_list"][2]["device"] == [
        {"device_id": "0", "device_ip": "1.1.1.3", "rank_id": "2", "super_device_id": "100"}]
    assert made["super_pod_list"] == [
        {"super_pod_id": "0", "server_list": [{"server_id": "node-0"}, {"server_id": "node-1"}]},
        {"super_pod_id": "7", "server_list": [{"server_id": "node-2"}]}]
    assert "super_pod_list" not in ranktable.render(table, "1.0")


def test_every_value_is_a_string() -> None:
    def strings(value: Any) -> bool:
        if isinstance(value, dict):
            return all(strings(one) for one in value.values())
        return all(map(strings, value)) if isinstance(value, list) else isinstance(value, str)

    assert strings(ranktable.render(ranktable.check([place(0, "1.1.1.1", super_pod="0")], 1)))


def test_two_pods_of_one_server_are_one_entry() -> None:
    one, two = place(0, "1.1.1.1", node="a"), place(1, "1.1.1.2", node="a")
    servers = ranktable.render(ranktable.check([one, two], 1))["server_list"]
    assert [[device["rank_id"] for device in server["device"]] for server in servers] == [["0", "1"]]


@pytest.mark.parametrize("ip", ["-.-.-.-", "", "300.1.1.1", "0.0.0.0", "192.168.1"])
def test_an_address_that_is_none_is_refused_with_pod_device_and_value(ip: str) -> None:
    with pytest.raises(ranktable.Unusable) as caught:
        ranktable.check([place(0, "1.1.1.1", "1.1.1.2"), place(1, "1.1.1.3", ip)], 2)
    assert caught.value.index == 1
    assert "pod j-1-1, node node-1, device 1: device_ip is " + repr(ip) in str(caught.value)


def test_an_address_that_two_devices_have_is_refused() -> None:
    with pytest.raises(ranktable.Unusable, match=r"10\.0\.0\.2.* also that of pod .* node .* device 1") as refused:
        ranktable.check([place(0, "10.0.0.1", "10.0.0.2"), place(1, "10.0.0.2", "10.0.0.4")], 2)
    assert refused.value.index == 1


def test_one_server_needs_no_addresses_where_some_are_missing() -> None:
    table = ranktable.check([place(0, "1.1.1.1", "")], 2)
    assert "device_ip" not in ranktable.render(table)["server_list"][0]["device"][1]


@pytest.mark.parametrize(("places", "ranks", "why"), [
    ([place(0, "1.1.1.1"), None], 1, r"1 of 2 pods do not know .* \(the first is index 1\)"),
    ([place(0, "", ""), place(1, "", "")], 2, "no device has an address"),
    ([place(0, "1.1.1.1", "1.1.1.2")], 1, "j-0-1 has 2 devices and 1 ranks"),
], ids=["silent", "no addresses", "a rank for two devices"])  # fmt: skip
def test_where_there_can_be_no_table(places: list[str | None], ranks: int, why: str) -> None:
    with pytest.raises(ranktable.Unknown, match=why):
        ranktable.check(places, ranks)


def test_devices_are_in_the_order_that_the_container_numbers_them() -> None:
    listed = json.dumps([device(10, "1.1.1.10"), device(2, "1.1.1.2")])
    made = json.loads(ranktable.place_of({**POD, "TRAINYARD_DEVICES": listed}) or "")
    assert [one[0] for one in made["devices"]] == ["2", "10"]


def test_mindclusters_annotation() -> None:
    text = json.dumps({"pod_name": "j-0-1", "server_id": "10.9.9.9", "host_ip": "10.9.9.9", "super_pod_id": -2,
                       "devices": [{"device_id": "3", "device_ip": "1.1.1.3", "super_device_id": "55"}]})
    made = json.loads(ranktable.place_of(POD, text) or "")
    assert made == {"pod": "j-0-1", "host": "172.16.0.1", "ip": "10.0.0.1", "server": "10.9.9.9", "superPod": "",
                    "devices": [["3", "1.1.1.3", "55"]]}
    assert ranktable.place_of(POD, "") is None


@pytest.mark.parametrize("text", ["{", "[1]", '[{"ip": "1.1.1.1"}]', "{}"])
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="TRAINYARD_DEVICES cannot be read"):
        ranktable.place_of({**POD, "TRAINYARD_DEVICES": text})


@pytest.mark.parametrize(("environment", "wanted"), [
    ({"TRAINYARD_HCCL": "true"}, True),
    ({"TRAINYARD_HCCL": "true", "RANK_TABLE_FILE": "/mine.json"}, False),
    ({}, False),
])  # fmt: skip
def test_who_wants_a_table(environment: dict[str, str], wanted: bool) -> None:
    assert ranktable.wants_table(environment) is wanted


# On the way -----------------------------------------------------------------------------------------------------------

tables = st.lists(st.text(alphabet="ab{}\"é", max_size=4), max_size=6).map(tuple)


def carry(shelf: ranktable.Shelf, basket: ranktable.Basket, wanted: str) -> int:
    """Bring the table `wanted` over, piece by piece; how many pieces."""
    for count in range(1, 1000):
        part = shelf.part(wanted, *basket.ask(wanted))
        assert part is not None
        if basket.take(part):
            return count
    raise AssertionError("no end")


@given(st.lists(tables, min_size=1, max_size=5))
def test_a_member_gets_every_table_whatever_it_had(chain: list[ranktable.Table]) -> None:
    shelf, basket = ranktable.Shelf(), ranktable.Basket()
    for number, table in enumerate(chain):
        wanted = shelf.put(table)
        if basket.have != wanted and number % 2 == 0:  # it misses some
            carry(shelf, basket, wanted)
            assert basket.table == table


def test_5000_pods_fit_and_a_loss_is_one_piece() -> None:
    many = [place(i, *(f"192.{i >> 8}.{i & 255}.{n}" for n in range(1, 9)), node=f"node-{i}") for i in range(5000)]
    shelf, basket = ranktable.Shelf(), ranktable.Basket()
    pieces = carry(shelf, basket, shelf.put(ranktable.check(many, 8)))
    assert pieces <= 16  # of 24 KiB, for 1.6 MB
    many[77] = place(77, *(f"193.0.0.{n}" for n in range(1, 9)), node="spare")
    assert carry(shelf, basket, shelf.put(ranktable.check(many, 8))) == 1
    assert basket.table == tuple(many)


def test_a_piece_that_does_not_fit_is_asked_for_again() -> None:
    shelf, basket = ranktable.Shelf(), ranktable.Basket()
    wanted = shelf.put(("a", "b"))
    have, at = basket.ask(wanted)
    part = shelf.part(wanted, have, at)
    assert part is not None
    assert not basket.take(part._replace(at=5))
    assert not basket.take(part._replace(table="other"))
    assert not basket.take(part._replace(data="eJwD"))  # damaged
    assert carry(shelf, basket, wanted) == 2  # the rest of the damaged one, and the whole again
    assert shelf.part("unknown", have, 0) is None
