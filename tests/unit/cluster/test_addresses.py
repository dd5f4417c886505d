"""Names and addresses of the built-in cluster."""

from __future__ import annotations

import ipaddress

import pytest
from cluster.builtin import addresses, configs
from cluster.builtin.addresses import MAX_NODES, NodePlan, checked_name, next_number, node_number
from cluster.errors import ClusterError


def test_every_node_has_addresses_of_its_own() -> None:
    plans = [NodePlan(number) for number in range(1, MAX_NODES + 1)]
    assert len({plan.ip for plan in plans}) == len({plan.pods for plan in plans}) == MAX_NODES
    for plan in plans:
        assert ipaddress.ip_address(plan.ip) in ipaddress.ip_network(addresses.NODES)
        assert ipaddress.IPv4Network(plan.pods).subnet_of(ipaddress.IPv4Network(addresses.PODS))
    assert addresses.CONTROL_PLANE not in {plan.ip for plan in plans}


def test_networks_do_not_overlap() -> None:
    networks = [ipaddress.ip_network(text) for text in (addresses.NODES, addresses.PODS, addresses.SERVICES)]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b)
    assert ipaddress.ip_address(addresses.KUBERNETES_SERVICE) == next(networks[2].hosts())


@pytest.mark.parametrize("number", [0, -1, MAX_NODES + 1])
def test_a_node_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ClusterError, match="nodes 1 to 250"):
        NodePlan(number)


def test_interface_names_fit_the_kernels_limit() -> None:
    assert len(NodePlan(MAX_NODES).port) <= 15


@pytest.mark.parametrize("name", ["dev", "a", "e2e-7", "x" * 30])
def test_good_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "Dev", "-a", "a-", "a/b", "..", "x" * 31, "a b"])
def test_names_that_cannot_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="expected 1 to 30"):
        checked_name(name)


def test_node_names_and_numbers_are_inverse() -> None:
    assert node_number(NodePlan(17).name) == 17
    for wrong in ("node-0", "node-01", "17", "worker-1"):
        with pytest.raises(ClusterError, match="node-1"):
            node_number(wrong)


def test_a_removed_nodes_number_is_used_again() -> None:
    assert [next_number([]), next_number([1, 2]), next_number([1, 3]), next_number([2, 3])] == [1, 3, 2, 1]


def test_clusters_have_cgroups_of_their_own() -> None:
    assert addresses.cgroup("a") != addresses.cgroup("b")
    assert addresses.cgroup("a") in configs.kubelet_document("a", NodePlan(1))
