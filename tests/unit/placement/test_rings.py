"""Which devices of a node are used together."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.placement.books import DeviceView
from trainyard.placement.rings import choose, legal, may_ask

SIZES = {"910A": (8, 4), "910B-8": (8, 8), "910B-16": (16, 8), "A3": (16, 16), "Other": (8, 4)}


def seats(model: str) -> list[DeviceView]:
    """A whole node, ids 0, 1, ..."""
    number, ring = SIZES[model]
    return [DeviceView(str(i), i // ring, i // 2) for i in range(number)]


@pytest.mark.parametrize(("model", "numbers"), [
    ("910A", (1, 2, 4, 8)),
    ("910B-8", (1, 2, 3, 4, 5, 6, 7, 8)),
    ("910B-16", (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)),
    ("A3", (1, 2, 4, 6, 8, 10, 12, 14, 16)),
    ("Other", ()),
])  # fmt: skip
def test_legal_numbers(model: str, numbers: tuple[int, ...]) -> None:
    assert legal(model) == numbers
    assert [count for count in range(1, 17) if may_ask(model, count)] == list(numbers or range(1, 17))


@pytest.mark.parametrize(("case", "model", "available", "count", "options", "answer"), [
    ("1: a ring with 1 free before one with 3", "910A", "0 4 5 6", 1, {}, "0"),
    ("1: 3 before 2", "910A", "0 1 4 5 6", 1, {}, "4"),
    ("1: 2 before a whole ring", "910A", "0 1 2 3 5 7", 1, {}, "5"),
    ("2: 2 before 4", "910A", "0 1 2 3 4 6", 2, {}, "4 6"),
    ("2: 4 before 3, which would leave a single one", "910A", "0 1 2 4 5 6 7", 2, {}, "4 5"),
    ("2: never of two rings", "910A", "0 4", 2, {}, ""),
    ("4: a whole ring", "910A", "0 1 2 4 5 6 7", 4, {}, "4 5 6 7"),
    ("8: all", "910A", "0 1 2 3 4 5 6 7", 8, {}, "0 1 2 3 4 5 6 7"),
    ("8: not 7", "910A", "0 1 2 3 4 5 6", 8, {}, ""),
    ("3 is not legal", "910A", "0 1 2 3", 3, {}, ""),
    ("what must be included decides the ring", "910A", "0 1 4 5 6 7", 2, {"must_include": ["6"]}, "4 6"),
    ("must_include of two rings", "910A", "0 1 4 5", 2, {"must_include": ["0", "4"]}, ""),
    ("must_include need not be free", "910A", "1", 2, {"must_include": ["0"]}, "0 1"),
    ("more must be included than is asked for", "910A", "0 1", 1, {"must_include": ["0", "1"]}, ""),
    ("must_include of another node", "910A", "0 1", 1, {"must_include": ["x"]}, ""),
    ("a shunned device comes last", "910A", "0 4 5 6 7", 1, {"shun": ["0"]}, "4"),
    ("a shunned device inside the ring", "910A", "0 1 2 3", 2, {"shun": ["0"]}, "1 2"),
    ("a shunned device if there is no other", "910A", "0", 1, {"shun": ["0"]}, "0"),
    ("no ring rule", "910B-8", "0 3 7", 3, {}, "0 3 7"),
    ("8 in one ring, the broken one first", "910B-16", "0 1 2 3 4 5 6 7 8 9 10", 3, {}, "8 9 10"),
    ("7 fit no ring", "910B-16", "0 1 2 3 8 9 10 11", 7, {}, ""),
    ("10 are split evenly, at the same places", "910B-16", "0 2 3 4 5 6 8 9 10 11 12 15", 10, {}, ""),
    ("10 of 12", "910B-16", "0 2 3 4 5 6 8 10 11 12 13 14", 10, {}, "0 2 3 4 5 8 10 11 12 13"),
    ("9 is not legal", "910B-16", "0 1 2 3 4 5 6 7 8 9", 9, {}, ""),
    ("a pair is a module", "A3", "1 2 4 5", 2, {}, "4 5"),
    ("two halves are no pair", "A3", "1 2", 2, {}, ""),
    ("a single die of a broken module", "A3", "0 1 3 4 5", 1, {}, "3"),
    ("whole modules with what must be included", "A3", "0 1 2 3 4 5", 4, {"must_include": ["5"]}, "0 1 4 5"),
    ("3 dies", "A3", "0 1 2 3", 3, {}, ""),
    ("others: any number, in one ring if that goes", "Other", "0 4 5 6", 3, {}, "4 5 6"),
    ("others: of two rings if not", "Other", "0 4 5 6", 4, {}, "0 4 5 6"),
    ("nothing asked for", "910A", "0", 0, {}, ""),
])  # fmt: skip
def test_choices(case: str, model: str, available: str, count: int, options: dict[str, list[str]], answer: str) -> None:
    assert choose(model, seats(model), available.split(), count=count, **options) == answer.split(), case


def lawful(model: str, chosen: tuple[str, ...]) -> bool:
    """The rules once more, said plainly of a set."""
    numbers = sorted(int(one) for one in chosen)
    count = len(numbers)
    if count not in legal(model) and legal(model):
        return False
    if model in ("910A", "910B-16"):
        size = SIZES[model][1]
        rings = [{n % size for n in numbers if n // size == ring} for ring in range(2)]
        return not all(rings) if count <= size else rings[0] == rings[1]
    if model == "A3" and count > 1:
        return all(number ^ 1 in numbers for number in numbers)
    return True


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[str], list[str], list[str], int]:
    model = draw(st.sampled_from(sorted(SIZES)))
    ids = [seat.id for seat in seats(model)]
    available = draw(st.lists(st.sampled_from(ids), unique=True))
    must = draw(st.lists(st.sampled_from(ids), unique=True, max_size=2))
    return model, available, must, draw(st.lists(st.sampled_from(ids), unique=True)), draw(st.integers(1, 16))


@settings(max_examples=150, deadline=None)
@given(requests())
def test_finds_a_legal_set_if_there_is_one(asked: tuple[str, list[str], list[str], list[str], int]) -> None:
    model, available, must, shun, count = asked
    found = choose(model, seats(model), available, must, count, shun)
    free = sorted({*available, *must})
    possible = [one for one in combinations(free, count) if set(must) <= set(one) and lawful(model, one)]
    assert bool(found) == bool(possible)
    if found:
        assert set(must) <= set(found) <= set(free)
        assert lawful(model, tuple(found))
        assert len({*found} & {*shun}) == min(len({*one} & {*shun}) for one in possible)


@settings(max_examples=150, deadline=None)
@given(requests())
def test_splits_no_ring_or_module_that_need_not_be_split(
    asked: tuple[str, list[str], list[str], list[str], int],
) -> None:
    """A whole ring is broken only if no broken one would do. The one exception is the table's own: 2 of a 910A rather
    break a whole ring than leave a single device of three."""
    model, available, _, _, count = asked
    found = choose(model, seats(model), available, (), count)
    ring = 2 if model == "A3" else SIZES[model][1]

    def broken(chosen: tuple[str, ...]) -> int:
        taken = Counter(int(one) // ring for one in chosen)
        free = Counter(int(one) // ring for one in available)
        return sum(free[one] == ring and number < ring for one, number in taken.items())

    if found and not (model == "910A" and count == 2):
        possible = [one for one in combinations(sorted(available), count) if lawful(model, one)]
        fewest = min(broken(one) for one in possible)
        assert broken(tuple(found)) == fewest
