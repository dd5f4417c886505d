"""Placement by devices against brute force, and against a kubelet that chooses by itself and tells late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.placement.books import Books, DeviceView, Nearness, NodeView, Obstacle
from trainyard.placement.place import place
from trainyard.placement.rings import choose, legal
from unit.placement.clusters import NPU, SIZES, demand, seated

MODELS = st.sampled_from(["910A", "910B-8", "910B-16", "A3"])


@st.composite
def nodes(draw: st.DrawFn, number: int, ill: bool = False) -> NodeView:
    model = draw(MODELS)
    size = SIZES[model][0]
    free = draw(st.sets(st.integers(0, size - 1))) if draw(st.booleans()) else set(range(size))
    some = st.sets(st.integers(0, size - 1), max_size=2)
    bad = {name: draw(some) for name in ("ill", "sub", "cut")} if ill else {}
    where = {"super_pod": draw(st.sampled_from(["", "x", "y"]))}
    where["rack"] = where["super_pod"] + draw(st.sampled_from("ab"))
    return seated(f"n{number}", model, free, cordoned=draw(st.integers(0, 5)) == 0, **where, **bad)


@st.composite
def clusters(draw: st.DrawFn, ill: bool = False) -> Books:
    made = [draw(nodes(number, ill)) for number in range(draw(st.integers(1, 6)))]
    return Books({one.name: one for one in made})


def sets(node: NodeView, count: int) -> int:
    """How many pods get legal devices on a node without faults; said plainly, by model."""
    assert node.devices is not None
    model, free = node.devices.model, [int(d.id[1:]) for d in node.devices.devices if d.free]
    if node.cordoned or count not in legal(model):
        return 0
    if model == "910B-8":
        return len(free) // count
    if model == "A3":
        return len(free) if count == 1 else sum(n % 2 == 0 and n + 1 in free for n in free) // (count // 2)
    size = SIZES[model][1]
    if count <= size:
        return sum(sum(n // size == ring for n in free) // count for ring in (0, 1))
    return sum(n < size and n + size in free for n in free) // (count // 2)


def goals(books: Books, chosen: tuple[str, ...]) -> tuple[int, ...]:
    """The stated order: super-pods, racks, nodes."""
    views = [view for name in set(chosen) if (view := books.nodes[name].devices)]
    racks = {(view.super_pod, view.rack) for view in views}
    return len({view.super_pod for view in views}), len(racks), len(set(chosen))


def answers(books: Books, count: int, pods: int) -> Iterator[tuple[str, ...]]:
    rooms = {name: sets(node, count) for name, node in books.nodes.items()}
    for one in combinations_with_replacement(sorted(books.nodes), pods):
        if all(number <= rooms[name] for name, number in Counter(one).items()):
            yield one


@settings(max_examples=150, deadline=None)
@given(clusters(), st.sampled_from([1, 2, 3, 4, 8, 10, 16]), st.integers(1, 4))
def test_as_good_as_brute_force(books: Books, count: int, pods: int) -> None:
    possible = list(answers(books, count, pods))
    found = place(books, demand({NPU: count}), range(pods))
    assert isinstance(found, Obstacle) == (not possible), "all of the gang or none"
    if isinstance(found, dict):
        assert goals(books, tuple(found.values())) == min(goals(books, one) for one in possible)


@settings(max_examples=100, deadline=None)
@given(clusters(), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.sampled_from(["node", "rack", "superpod"]),
       st.booleans())  # fmt: skip
def test_topology_goes_before_the_other_goals(
    books: Books, count: int, pods: int, level: str, required: bool
) -> None:
    def domain(name: str) -> str:
        view = books.nodes[name].devices
        assert view is not None
        return {"node": name, "rack": view.rack, "superpod": view.super_pod}[level]

    def of(chosen: tuple[str, ...]) -> int:
        return len({domain(name) for name in chosen})

    possible = [one for one in answers(books, count, pods) if all(map(domain, one)) or not required]
    inside = [one for one in possible if of(one) == 1 and domain(one[0])]
    found = place(books, demand({NPU: count}), range(pods), nearness=Nearness(level, required))
    assert isinstance(found, Obstacle) == (not (inside if required else possible))
    if isinstance(found, dict) and inside:
        chosen = tuple(found.values())
        assert of(chosen) == 1
        assert goals(books, chosen) == min(goals(books, one) for one in inside)
    elif isinstance(found, dict) and (known := [one for one in possible if all(map(domain, one))]):
        assert of(tuple(found.values())) == min(map(of, known))


@settings(max_examples=100, deadline=None)
@given(clusters(), st.sampled_from([1, 2, 4]))
def test_a_whole_ring_is_not_split_if_a_broken_one_would_do(books: Books, count: int) -> None:
    """But for 2 of a 910A, which rather break a whole ring than leave one of three."""
    books = Books({name: node for name, node in books.nodes.items()
                   if node.devices and node.devices.model in ("910A", "910B-16")})  # fmt: skip
    found = place(books, demand({NPU: count}), [0])
    if isinstance(found, Obstacle):
        return

    def rings(node: NodeView) -> list[tuple[int, bool]]:
        assert node.devices is not None
        size = SIZES[node.devices.model][1]
        free = Counter(device.ring for device in node.devices.devices if device.free)
        usual = count == 2 and node.devices.model == "910A"
        return [(number, number == size) for number in free.values() if number >= count and not (usual and number == 3)]

    others = [ring for node in books.nodes.values() if not node.cordoned for ring in rings(node)]
    mine = rings(books.nodes[found[0]])
    if any(not whole for _, whole in others):
        models = {node.devices.model for node in books.nodes.values() if node.devices}
        assert len(models) > 1 or any(not whole for _, whole in mine)


@dataclass
class Kubelets:
    """What really holds what; NodeDevices tells of it when `tell` is called."""

    books: Books
    held: dict[tuple[str, str], str] = field(default_factory=dict)  # (node, device): pod

    def admit(self, pod: str, name: str, count: int) -> None:
        """Kubelet asks the plugin, which knows health but not the job."""
        view = self.books.nodes[name].devices
        assert view is not None
        free = [d.id for d in view.devices if d.usable and (name, d.id) not in self.held]
        free = [each for each in free if self._free_at_first(name, each)]
        shun = [d.id for d in view.devices if d.sub_healthy or not d.network]
        chosen = choose(view.model, view.devices, free, (), count, shun)
        assert chosen, "a place without a legal set"
        self.held |= {(name, each): pod for each in chosen}

    def _free_at_first(self, name: str, device: str) -> bool:
        view = self.books.nodes[name].devices
        return view is not None and any(d.id == device and (d.free or d.holder) for d in view.devices)

    def remove(self, pod: str) -> None:
        self.held = {place: holder for place, holder in self.held.items() if holder != pod}

    def tell(self, name: str) -> None:
        """NodeDevices of one node catches up."""
        node = self.books.nodes[name]
        assert node.devices is not None
        told = tuple(self._told(name, device) for device in node.devices.devices)
        made = {**self.books.nodes, name: replace(node, devices=replace(node.devices, devices=told))}
        self.books = replace(self.books, nodes=made)

    def _told(self, name: str, device: DeviceView) -> DeviceView:
        holder = self.held.get((name, device.id), "")
        if holder:
            return replace(device, holder=holder, free=False)
        return replace(device, holder="", free=True) if device.holder else device


STEPS = st.lists(st.tuples(st.sampled_from(["place", "place", "remove", "tell"]), st.integers(0, 9),
                           st.sampled_from([1, 2, 4, 8]), st.integers(1, 3)), max_size=12)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(clusters(ill=True), STEPS)
def test_kubelet_finds_a_legal_set_wherever_a_pod_is_placed(books: Books, steps: Any) -> None:
    """No device is given twice, and at the end the books are as they were, whatever is told how late; but a pod that
    leaves before anybody told what it held takes its order with it, and the others' choice can only be guessed: kubelet
    refuses then, and the pod is placed again."""
    real, jobs = Kubelets(books), {}
    for number, (what, which, count, pods) in enumerate(steps):
        if what == "place":
            found = place(real.books, demand({NPU: count}), range(pods))
            if isinstance(found, dict):
                places = {f"ns/j{number}-{index}": node for index, node in found.items()}
                jobs[number] = (places, count)
                real.books = real.books.take(places, demand({NPU: count}).requests)
                for pod, node in places.items():
                    real.admit(pod, node, count)
                assert len(places) == 1 or not _cut(real, places), "devices without network in a job of several nodes"
        elif what == "remove" and jobs:
            places, count = jobs.pop(sorted(jobs)[which % len(jobs)])
            for node in places.values():  # see the docstring
                real.tell(node)
            real.books = real.books.release(places, demand({NPU: count}).requests)
            for pod in places:
                real.remove(pod)
        elif what == "tell":
            real.tell(sorted(real.books.nodes)[which % len(real.books.nodes)])
    for places, count in jobs.values():
        real.books = real.books.release(places, demand({NPU: count}).requests)
    assert (real.books.used, real.books.pods) == ({}, {})


def _cut(real: Kubelets, places: dict[str, str]) -> list[str]:
    bad = {(node.name, d.id) for node in real.books.nodes.values() if node.devices
           for d in node.devices.devices if not d.network}  # fmt: skip
    return [pod for place, pod in real.held.items() if place in bad and pod in places]
