"""Placement against brute force on small clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.placement.books import Books, Demand, NodeView, Obstacle, Taint
from trainyard.placement.place import place
from unit.placement.clusters import NPU, Claim

SELECTORS = st.sampled_from([{}, {"pool": "a"}])


@st.composite
def nodes(draw: st.DrawFn, number: int) -> NodeView:
    allocatable = {
        "cpu": draw(st.integers(0, 4)) * 1000,
        "pods": draw(st.integers(0, 5)),
        NPU: draw(st.sampled_from([0, 4, 8])),
    }
    labels = {"pool": draw(st.sampled_from("aab")), "topology.kubernetes.io/zone": draw(st.sampled_from("xyz"))}
    taints = (Taint("busy", draw(st.sampled_from(["NoSchedule", "PreferNoSchedule"]))),) * draw(st.integers(0, 1))
    return NodeView(f"n-{number}", allocatable, labels, taints, draw(st.booleans()) and draw(st.booleans()))


@st.composite
def clusters(draw: st.DrawFn) -> Books:
    made = [draw(nodes(number)) for number in range(draw(st.integers(0, 5)))]
    used = {one.name: {name: draw(st.integers(0, amount)) for name, amount in one.allocatable.items()} for one in made}
    return Books({one.name: one for one in made}, {name: taken for name, taken in used.items() if draw(st.booleans())})


demands = st.builds(
    lambda cpu, npus, selector, tolerant: Demand(
        {"cpu": cpu, NPU: npus, "pods": 1}, node_selector=selector, tolerations=({"operator": "Exists"},) * tolerant
    ),
    st.sampled_from([0, 500, 1000, 2500]), st.sampled_from([0, 1, 4, 8]), SELECTORS, st.integers(0, 1),
)  # fmt: skip


def may_run(node: NodeView, demand: Demand) -> bool:
    """The same question asked plainly."""
    if demand.node_selector and node.labels["pool"] != demand.node_selector["pool"]:
        return False
    return bool(demand.tolerations) or not (node.cordoned or any(t.effect == "NoSchedule" for t in node.taints))


def fit(books: Books, demand: Demand, chosen: tuple[str, ...]) -> bool:
    for name, number in Counter(chosen).items():
        node, used = books.nodes[name], books.used.get(name, {})
        if not may_run(node, demand):
            return False
        for resource, amount in demand.requests.items():
            if amount and used.get(resource, 0) + number * amount > node.allocatable[resource]:
                return False
    return True


def answers(books: Books, demand: Demand, count: int) -> Iterator[tuple[str, ...]]:
    """Every way to give `count` identical pods a node."""
    return (c for c in combinations_with_replacement(sorted(books.nodes), count) if fit(books, demand, c))


def zone(books: Books, name: str) -> str:
    return books.nodes[name].labels["topology.kubernetes.io/zone"]


def goals(books: Books, demand: Demand, chosen: tuple[str, ...]) -> tuple[int, ...]:
    """The stated order: with devices few zones, then few nodes; without, few pods that share a node, then many nodes,
    then few zones."""
    zones, nodes, together = len({zone(books, name) for name in chosen}), len(set(chosen)), Counter(chosen)
    if demand.requests[NPU]:
        return zones, nodes
    return max(together.values()), -nodes, zones if nodes == len(chosen) else 0


@settings(max_examples=200, deadline=None)
@given(clusters(), demands, st.integers(1, 5))
def test_as_good_as_brute_force(books: Books, demand: Demand, count: int) -> None:
    possible = list(answers(books, demand, count))
    found = place(books, demand, range(count))
    assert isinstance(found, Obstacle) == (not possible)
    if isinstance(found, dict):
        assert sorted(found) == list(range(count))
        chosen = tuple(found.values())
        assert fit(books, demand, chosen)
        assert goals(books, demand, chosen) == min(goals(books, demand, c) for c in possible)
        in_order = [zone(books, found[index]) for index in range(count)]
        assert in_order == sorted(in_order)


@settings(max_examples=100, deadline=None)
@given(clusters(), demands, st.integers(1, 4))
def test_one_a_node_where_the_template_wants_it(books: Books, demand: Demand, count: int) -> None:
    possible = [c for c in answers(books, demand, count) if len(set(c)) == count]
    found = place(books, replace(demand, apart="Required"), range(count))
    assert isinstance(found, Obstacle) == (not possible)
    if isinstance(found, dict):
        assert len(set(found.values())) == count
        zones = len({zone(books, name) for name in found.values()})
        assert zones == min(len({zone(books, name) for name in c}) for c in possible)


@settings(max_examples=60, deadline=None)
@given(clusters(), demands, st.integers(1, 4), st.randoms())
def test_the_order_of_the_books_does_not_matter(books: Books, demand: Demand, count: int, random: Random) -> None:
    names = list(books.nodes)
    random.shuffle(names)
    shuffled = Books({name: books.nodes[name] for name in names}, dict(reversed(list(books.used.items()))))
    assert place(shuffled, demand, range(count)) == place(books, demand, range(count))


@settings(max_examples=60, deadline=None)
@given(clusters(), st.lists(st.tuples(demands, st.integers(1, 3)), max_size=4))
def test_placing_then_removing_leaves_the_books_exact(books: Books, gangs: list[tuple[Demand, int]]) -> None:
    before, placed = books, []
    for number, (demand, count) in enumerate(gangs):
        found = place(books, demand, range(count))
        if isinstance(found, dict):
            places = {f"ns/j{number}-{index}": node for index, node in found.items()}
            books = books.take(places, demand.requests)
            placed.append((places, demand))
    for name, node in books.nodes.items():
        assert all(amount <= node.allocatable.get(r, 0) for r, amount in books.used.get(name, {}).items())
    for places, demand in placed:
        books = books.release(places, demand.requests)
    assert books.pods == before.pods

    def taken(of: Books) -> dict[str, dict[str, int]]:
        return {n: kept for n, used in of.used.items() if (kept := {r: amount for r, amount in used.items() if amount})}

    assert taken(books) == taken(before)


@settings(max_examples=120, deadline=None)
@given(clusters(), demands, st.integers(1, 5), demands, st.integers(1, 3))
def test_what_is_reserved_is_not_given_away(
    books: Books, older: Demand, many: int, younger: Demand, few: int
) -> None:
    def fitting(books: Books) -> int:
        return max(n for n in range(many + 1) if n == 0 or next(answers(books, older, n), None))

    empty = Books(books.nodes)
    found = place(books, younger, range(few), reserved=[Claim(older, many)])
    if isinstance(found, dict):
        if fitting(empty) == many:
            assert fitting(books.take({str(i): node for i, node in found.items()}, younger.requests)) == fitting(books)
    else:
        alone = place(books, younger, range(few))
        assert isinstance(alone, Obstacle) or found.reason == "Reserved"
