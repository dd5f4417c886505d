"""Places for a whole gang, or the reason why there are none (docs/placement.md)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trainyard.placement.books import Books, Demand, NodeView, Obstacle, Resources
from trainyard.placement.matching import hindrance, reluctance
from trainyard.placement.obstacle import explain
from trainyard.placement.quantities import show_amount
from trainyard.placement.room import natural, room

# From the widest domain to the narrowest; nodes of one domain are near each other.
LEVELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone")


Domains = tuple[str, ...]


class QuotaLeft(Protocol):
    """What a ResourceQuota still allows, by its own resource names (placement.quantities.quota_left)."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def left(self) -> Mapping[str, int]:
        """Hard less used."""


class Claim(Protocol):
    """A waiting gang whose nodes are kept from those that come after it."""

    @property
    def demand(self) -> Demand:
        """What each of its pods needs."""

    @property
    def count(self) -> int:
        """Its pods."""


def place(
    books: Books,
    demand: Demand,
    indices: Iterable[int],
    taken: Mapping[int, str] | None = None,
    avoid: Mapping[str, str] | None = None,
    reserved: Sequence[Claim] = (),
) -> dict[int, str] | Obstacle:
    """A node for each of the indices, or why the gang has no place: all of them or none.

    `taken` says where the rest of the gang is; the books count those pods already. Nodes in `avoid` (node: reason) are
    used only if the gang has no place without them. What `reserved` gangs, which come first, need or wait for is not
    given away. The same input always gives the same answer.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return {}
    kept = books
    for claim in reserved:
        kept = _reserve(kept, claim)
    places = _candidates(kept, demand)
    choices = [places]
    if avoid:
        choices.insert(0, [place for place in places if place.node not in avoid])
    members, near = _whereabouts(books, (taken or {}).values())
    for choice in choices:
        loads = _spread(choice, len(wanted), members, near)
        if loads is not None:
            ordered = sorted((place for place in choice if loads[place.node]), key=lambda place: place.order)
            slots = [place.node for place in ordered for _ in range(loads[place.node])]
            return dict(zip(wanted, slots, strict=True))
    return explain(books, kept, demand, len(wanted))


@dataclass(frozen=True, slots=True)
class Place:
    """A node with room for at least one pod of the gang."""

    node: str
    room: int  # pods of the gang that fit
    domains: tuple[str, ...]  # by LEVELS
    order: tuple[object, ...]  # neighbours come one after the other
    cost: tuple[int, int]  # the pod's reluctance, and devices on the node that it has no use for
    fit: tuple[object, ...]  # among near nodes the smallest is taken: the least is left over that others could use


def _candidates(books: Books, demand: Demand) -> list[Place]:
    found = []
    for name, node in books.nodes.items():
        used = books.used.get(name, {})
        fits = room(node, used, demand.requests)
        if fits and hindrance(node, demand) is None:
            domains = _domains(node)
            order = (domains, natural(name))
            foreign, own = _left_over(node, used, demand.requests)
            cost = (reluctance(node, demand), foreign)
            found.append(Place(name, fits, domains, order, cost, (*cost, own, fits, order)))
    return found


def _whereabouts(books: Books, nodes: Iterable[str]) -> tuple[Counter[str], Counter[Domains]]:
    """Pods by node and by domain."""
    members = Counter(nodes)
    near: Counter[Domains] = Counter()
    for name, number in members.items():
        if name in books.nodes:
            for domain in _within(_domains(books.nodes[name])):
                near[domain] += number
    return members, near


def _domains(node: NodeView) -> Domains:
    return tuple(node.labels.get(level, "") for level in LEVELS)


def _left_over(node: NodeView, used: Resources, requests: Resources) -> tuple[int, int]:
    """Free devices that the pod does not use, of kinds that it does not ask for and of kinds that it does."""
    foreign = own = 0
    for name, amount in node.allocatable.items():
        if "/" in name:
            free = amount - used.get(name, 0)
            if name in requests:
                own += free
            else:
                foreign += free
    return foreign, own


def _spread(places: Sequence[Place], count: int, taken: Counter[str], near: Counter[Domains]) -> Counter[str] | None:
    """Pods by node, over as many nodes as possible; None if they do not all fit. `taken` are the gang's other pods by
    node, `near` the same by domain."""
    if sum(min(place.room, count) for place in places) < count:
        return None

    def filled(level: int) -> Counter[str]:
        """Pods by node if every node is filled up to `level` members of the gang."""
        return Counter({p.node: min(p.room, max(0, level - taken[p.node])) for p in places})

    low, high = 1, count + max(taken.values(), default=0)
    while low < high:  # the lowest level at which all have a place
        middle = (low + high) // 2
        if filled(middle).total() >= count:
            high = middle
        else:
            low = middle + 1
    loads, full = filled(low - 1), filled(low)
    top = sorted((place for place in places if full[place.node] > loads[place.node]), key=lambda place: place.fit)
    near = near.copy()
    for place in places:
        for domain in _within(place.domains):
            near[domain] += loads[place.node]
    loads.update(place.node for place in _choose(top, count - loads.total(), near, 0))
    return loads


def _choose(places: Sequence[Place], count: int, near: Counter[Domains], depth: int) -> list[Place]:
    """`count` of the places, sorted by fit, one pod each: in as few domains as possible, near the rest of the gang, and
    of several domains that would do the one that is left with the least."""
    if depth == len(LEVELS) or count == 0 or not places[0].domains:
        return list(places[:count])
    domains: dict[Domains, list[Place]] = defaultdict(list)
    for place in places:
        domains[place.domains[: depth + 1]].append(place)
    chosen: list[Place] = []
    while len(chosen) < count:
        rest = count - len(chosen)
        ample = [domain for domain, inside in domains.items() if len(inside) >= rest]
        if ample:
            best = min(ample, key=lambda d: (-near[d], _cost(domains[d][:rest]), len(domains[d]), d))
        else:
            best = min(domains, key=lambda d: (-len(domains[d]), -near[d], _cost(domains[d]), d))
        inside = domains.pop(best)
        chosen += _choose(inside, min(rest, len(inside)), near, depth + 1)
    return chosen


def _cost(places: Sequence[Place]) -> tuple[int, int]:
    return sum(place.cost[0] for place in places), sum(place.cost[1] for place in places)


def _within(domains: Domains) -> list[Domains]:
    """A domain and all that it lies in."""
    return [domains[: depth + 1] for depth in range(len(domains))]


def _reserve(books: Books, claim: Claim) -> Books:
    """The books with the claim's places taken. While the claim has to wait, all the room it has now is kept, and for
    its other pods what is free on the nodes that need the least to become roomy. A claim that even an empty cluster
    could not satisfy keeps nothing."""
    requests, count = claim.demand.requests, claim.count
    candidates = _candidates(books, claim.demand)
    loads = _spread(candidates, count, Counter(), Counter())
    if loads is None:
        loads = _hopes(books, claim.demand, count, Counter({place.node: place.room for place in candidates}))
    if loads is None:
        return books
    used = dict(books.used)
    for name, number in loads.items():
        if number:
            allocatable, before = books.nodes[name].allocatable, used.get(name, {})
            kept = {r: min(amount * number, max(0, allocatable.get(r, 0) - before.get(r, 0)))
                    for r, amount in requests.items()}  # fmt: skip
            used[name] = {**before, **{r: before.get(r, 0) + amount for r, amount in kept.items()}}
    return Books(books.nodes, used)


def _hopes(books: Books, demand: Demand, count: int, loads: Counter[str]) -> Counter[str] | None:
    """`loads`, which are the pods that fit now, and the others on nodes that would have room if they were empty; None
    if not even then."""
    hopes = []
    for name, node in books.nodes.items():
        more = room(node, {}, demand.requests) - loads[name]
        if more > 0 and hindrance(node, demand) is None:
            used = books.used.get(name, {})
            ready = min((min(1.0, (node.allocatable[r] - used.get(r, 0)) / amount - loads[name])
                         for r, amount in demand.requests.items() if amount), default=1.0)  # fmt: skip
            hopes.append((-ready, natural(name), name, more))
    rest = count - loads.total()
    if sum(min(more, rest) for *_, more in hopes) < rest:
        return None
    for *_, name, more in sorted(hopes):
        loads[name] += min(more, rest)
        rest -= min(more, rest)
    return loads


def check_quota(quotas: Iterable[QuotaLeft], demand: Demand, count: int) -> Obstacle | None:
    """Whether `count` more pods would exceed a ResourceQuota of their namespace."""
    over = []
    for quota in quotas:
        for name, left in sorted(quota.left.items()):
            needed = count * charged(name, demand)
            if needed and needed > left:
                over.append(f"{quota.name} has {show_amount(name, max(0, left))} {name} left and {count} "
                            f"pod{'s need' if count > 1 else ' needs'} {show_amount(name, needed)}")  # fmt: skip
    return Obstacle("QuotaExceeded", "Quota " + ", ".join(over) + ".") if over else None


def charged(name: str, demand: Demand) -> int:
    """What one pod counts against a quota's resource of that name."""
    if name in ("pods", "count/pods"):
        return 1
    kind, dot, resource = name.partition(".")
    if dot and kind == "requests":
        return demand.requests.get(resource, 0)
    if dot and kind == "limits":
        return demand.limits.get(resource, 0)
    return demand.requests.get(name, 0) if name in ("cpu", "memory", "ephemeral-storage") else 0
