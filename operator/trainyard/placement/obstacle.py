"""Why a gang has no place, in one sentence that a user can act on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainyard.placement.books import Books, Demand, NodeView, Obstacle
from trainyard.placement.matching import hindrance
from trainyard.placement.quantities import show, show_amount
from trainyard.placement.room import natural, room

MOST_NAMED = 6  # kinds of devices, causes: a sentence, not a report


def explain(books: Books, kept: Books, demand: Demand, count: int) -> Obstacle:
    """The obstacle to `count` pods. `kept` are the books with what other jobs' claims take away."""
    if not books.nodes:
        return Obstacle("NoNodes", "The cluster has no nodes.")
    missing = _no_such_device(books, demand)
    if missing is not None:
        return missing
    survey = _survey(books, kept, demand, count)
    reason = survey.reason(count)
    message = f"{_needs(books, demand, count)}: {_found(books, survey)}"
    causes = survey.causes()
    if causes:
        message += "; " + ", ".join(causes[:MOST_NAMED])
    if reason == "InsufficientCapacity":
        message += f"; even if they were empty, only {min(survey.capacity, count)} of {count} pods would fit"
    return Obstacle(reason, message + ".")


@dataclass(slots=True)
class _Survey:
    """Every node judged once, by the first thing that stands in the way."""

    roomy: int = 0  # nodes with room now
    fitting: int = 0  # pods that fit on them
    before_claims: int = 0  # pods that would fit if nothing were kept for others
    capacity: int = 0  # pods that would fit on the nodes that may be used, were they empty
    hindered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unavailable: int = 0  # of the hindered, those that may come back by themselves: not ready, cordoned
    claimed: int = 0
    short: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # lacks it now, by resource
    small: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # never has enough of it
    without: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # has none at all
    best: dict[str, str] = field(default_factory=dict)  # of those that lack it now, by resource

    def reason(self, count: int) -> str:
        if not (self.roomy or self.claimed or self.short or self.small or self.without or self.unavailable):
            return "NoMatchingNode"
        if self.before_claims >= count:
            return "Reserved"
        if self.capacity < count and not self.unavailable:
            return "InsufficientCapacity"
        return "InsufficientResources"

    def causes(self) -> list[str]:
        """The most frequent first, each with its count."""
        found = [(len(nodes), f"{_lack(len(nodes), 'free ' + name)} {self.best[name]}")
                 for name, nodes in self.short.items()]  # fmt: skip
        found += [(len(nodes), _too_small(name, nodes)) for name, nodes in self.small.items()]
        found += [(len(nodes), f"{_have(len(nodes))} no {name}") for name, nodes in self.without.items()]
        found += [(number, f"{_are(number)} {why}") for why, number in self.hindered.items()]
        if self.claimed:
            found.append((self.claimed, f"{_are(self.claimed)} kept for jobs that come first"))
        return [f"{number} {text}" for number, text in sorted(found, key=lambda one: (-one[0], one[1]))]


def _survey(books: Books, kept: Books, demand: Demand, count: int) -> _Survey:
    survey = _Survey()
    for name, node in books.nodes.items():
        why = hindrance(node, demand)
        if why is not None:
            survey.hindered[why] += 1
            survey.unavailable += why in ("not ready", "cordoned")
            continue
        empty = room(node, {}, demand.requests)
        before = room(node, books.used.get(name, {}), demand.requests)
        now = room(node, kept.used.get(name, {}), demand.requests)
        survey.capacity += min(empty, count)
        survey.before_claims += min(before, count)
        if now:
            survey.roomy += 1
            survey.fitting += min(now, count)
        elif before:
            survey.claimed += 1
        elif empty:
            survey.short[_scarce(node, books.used.get(name, {}), demand)].append(node)
        else:
            resource = _scarce(node, {}, demand)
            (survey.small if node.allocatable.get(resource) else survey.without)[resource].append(node)
    for resource, nodes in survey.short.items():
        survey.best[resource] = _best(books, resource, nodes)
    return survey


def _no_such_device(books: Books, demand: Demand) -> Obstacle | None:
    for name in _ordered(demand.requests):
        if "/" not in name:
            continue
        listing = [node for node in books.nodes.values() if name in node.allocatable]
        if any(node.allocatable[name] for node in listing):
            continue
        if listing:
            why = "its device plugin is not running, or no device is healthy"
            had = f"{len(listing)} of {_nodes(len(books.nodes))} had it"
            return Obstacle("NoSuchDevice", f"Needs {name}: {had}, but none has any left; {why}.")
        return Obstacle("NoSuchDevice", f"Needs {name}, which no node has; {_devices(books)}.")
    return None


def _devices(books: Books) -> str:
    """What devices there are instead."""
    nodes: dict[str, int] = defaultdict(int)
    for node in books.nodes.values():
        for name, amount in node.allocatable.items():
            if "/" in name and amount:
                nodes[name] += 1
    if not nodes:
        return "there are no devices"
    named = sorted(nodes.items(), key=lambda one: (-one[1], one[0]))
    listed = ", ".join(f"{name} (on {_nodes(number)})" for name, number in named[:MOST_NAMED])
    return f"the cluster has {listed}" + (", ..." if len(named) > MOST_NAMED else "")


def _needs(books: Books, demand: Demand, count: int) -> str:
    each = ", ".join(show(name, demand.requests[name]) for name in _ordered(demand.requests) if name != "pods")
    if all(room(node, {}, demand.requests) <= 1 for node in books.nodes.values()):
        return f"Needs {_nodes(count)}" + (f" with {each}" if each else "")
    return f"Needs room for {count} pod{'s' if count > 1 else ''}" + (
        f" with {each}{' each' if count > 1 else ''}" if each else ""
    )


def _found(books: Books, survey: _Survey) -> str:
    total = len(books.nodes)
    if not survey.roomy:
        return "the only node does not have it" if total == 1 else f"none of the {total} nodes has it"
    if survey.fitting == survey.roomy:
        return f"{survey.roomy} of {total} {_have(survey.roomy)} it"
    return f"{survey.fitting} fit on {survey.roomy} of {_nodes(total)}"


def _scarce(node: NodeView, used: Mapping[str, int], demand: Demand) -> str:
    """The resource that is to blame: devices before cpu before memory."""
    for name in _ordered(demand.requests):
        if node.allocatable.get(name, 0) - used.get(name, 0) < demand.requests[name]:
            return name
    raise AssertionError(f"{node.name} lacks nothing")  # only asked about nodes without room


def _best(books: Books, resource: str, nodes: Iterable[NodeView]) -> str:
    def free(node: NodeView) -> int:
        return max(0, node.allocatable.get(resource, 0) - books.used.get(node.name, {}).get(resource, 0))

    node = min(nodes, key=lambda one: (-free(one), natural(one.name)))
    amounts = show_amount(resource, free(node)), show_amount(resource, node.allocatable.get(resource, 0))
    return f"(best: {node.name} with {amounts[0]} of {amounts[1]} free)"


def _too_small(resource: str, nodes: list[NodeView]) -> str:
    node = min(nodes, key=lambda one: (-one.allocatable[resource], natural(one.name)))
    return f"{_are(len(nodes))} too small (best: {node.name} with {show(resource, node.allocatable[resource])})"


def _ordered(requests: Mapping[str, int]) -> list[str]:
    """What is asked for, devices first."""
    rank = {"cpu": 1, "memory": 2, "pods": 4}
    asked = [name for name, amount in requests.items() if amount > 0]
    return sorted(asked, key=lambda name: (0 if "/" in name else rank.get(name, 3), name))


def _nodes(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _lack(number: int, what: str) -> str:
    return f"{'lacks' if number == 1 else 'lack'} {what}"
