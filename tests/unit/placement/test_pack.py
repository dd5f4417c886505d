"""Packing against brute force by the whole order of goals, and what is done where that would take too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.placement.domains import Domains, within
from trainyard.placement.pack import pack
from trainyard.placement.price import Kind, Place, of_loads

SOME = st.integers(0, 2)


@st.composite
def places(draw: st.DrawFn, number: int) -> Place:
    room = draw(st.integers(1, 3))
    ranks, broken = list[int](), list[int]()
    for _ in range(room):
        ranks.append(draw(SOME) + (ranks[-1] if ranks else 0))
        broken.append(draw(SOME))
    kind = Kind(room, draw(st.integers(0, room)), draw(st.booleans()), draw(st.sampled_from([-100, 0, 0, 1000])),
                draw(SOME), tuple(ranks), tuple(broken), draw(SOME))  # fmt: skip
    where = ("", draw(st.sampled_from("xy")), draw(st.sampled_from("st")), draw(st.sampled_from("ab")))
    return Place(f"n{number}", room, where, (*where, number), kind)


clusters = st.integers(0, 6).flatmap(lambda number: st.tuples(*map(places, range(number))))


@st.composite
def gangs(draw: st.DrawFn) -> tuple[Sequence[Place], int, Counter[str], Counter[Domains]]:
    """Places, pods to place, the gang's other pods by node and by domain."""
    found = draw(clusters)
    taken = Counter({place.node: 1 for place in found if draw(st.integers(0, 4)) == 0})
    near = Counter(each for place in found if taken[place.node] for each in within(place.domains))
    return found, draw(st.integers(1, 6)), taken, near


def answers(found: Sequence[Place], count: int) -> Iterator[dict[str, int]]:
    for loads in product(*(range(place.room + 1) for place in found)):
        if sum(loads) == count:
            yield {place.node: load for place, load in zip(found, loads, strict=True) if load}


@settings(max_examples=120, deadline=None)
@given(gangs())
def test_nothing_is_cheaper(gang: tuple[Sequence[Place], int, Counter[str], Counter[Domains]]) -> None:
    found, count, taken, near = gang
    loads = pack(found, count, taken, near)
    prices = [of_loads(found, one, count, taken, near) for one in answers(found, count)]
    assert (loads is None) == (not prices)
    if loads is not None:
        assert loads.total() == count
        assert of_loads(found, loads, count, taken, near) == min(prices)


@settings(max_examples=120, deadline=None)
@given(gangs())
def test_a_cluster_too_large_for_that_is_filled_from_the_largest_domain(
    gang: tuple[Sequence[Place], int, Counter[str], Counter[Domains]],
) -> None:
    found, count, taken, near = gang
    loads = pack(found, count, taken, near, work=-1)
    possible = list(answers(found, count))
    assert (loads is None) == (not possible)
    if loads is None:
        return
    assert loads.total() == count
    assert all(loads[place.node] <= place.room for place in found)

    def new_zones(one: dict[str, int]) -> int:
        return len({place.domains[:2] for place in found if one.get(place.node) and not near[place.domains[:2]]})

    def nodes(one: dict[str, int]) -> int:
        return len([name for name in one if not taken[name]])

    assert new_zones(loads) == min(map(new_zones, possible))
    if len({place.domains for place in found}) == 1:
        assert nodes(loads) == min(map(nodes, possible))
