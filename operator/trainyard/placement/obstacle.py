"""Why a gang has no place, in one sentence that a user can act on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainyard.placement.arrange import by_domain
from trainyard.placement.books import Books, Demand, Gang, NodeView, Obstacle
from trainyard.placement.candidates import candidates, look
from trainyard.placement.domains import NODE_LEVELS, RACK, SUPER_POD, domain
from trainyard.placement.matching import hindrance
from trainyard.placement.quantities import show, show_amount
from trainyard.placement.rings import legal, may_ask
from trainyard.placement.room import capacity, natural
from trainyard.placement.seats import Gaze, fit, free_by_ring, whole

MOST_NAMED = 6  # kinds of devices, causes: a sentence, not a report
MOST_FAULTS = 3  # devices of one node
_PLAIN_LABELS = ("kubernetes.io/", "beta.kubernetes.io/", "node.kubernetes.io/", "node-role.kubernetes.io/")


def explain(books: Books, kept: Books, gang: Gang, members: Counter[str]) -> Obstacle:
    """The obstacle to the gang. `kept` are the books with what other jobs' claims take away, `members` the gang's pods
    that are there, by node."""
    if not books.nodes:
        return Obstacle("NoNodes", "The cluster has no nodes.")
    known = _no_such_device(books, gang.demand) or unservable(books, gang.demand) or _no_such_topology(books, gang)
    if known is not None:
        return known
    survey = _survey(books, kept, gang)
    reason = survey.reason(gang.count)
    message = f"{_needs(survey, gang)}: {_found(books, survey)}"
    apart = _apart(books, kept, gang, members) if survey.fitting >= gang.count else ""
    causes = [apart] if apart else []
    causes += survey.causes()[:MOST_NAMED]
    if causes:
        message += "; " + ", ".join(causes)
    if reason == "InsufficientCapacity":
        message += f"; even if they were empty, only {min(survey.capacity, gang.count)} of {gang.count} pods would fit"
    return Obstacle(reason, message + ".")


@dataclass(slots=True)
class _Survey:
    """Every node judged once, by the first thing that stands in the way."""

    roomy: int = 0  # nodes with room now
    fitting: int = 0  # pods that fit on them
    before_claims: int = 0  # pods that would fit if nothing were kept for others
    capacity: int = 0  # pods that would fit on the nodes that may be used, were they empty and all devices healthy
    largest: int = 0  # pods that would fit on the largest of these nodes
    hindered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unavailable: int = 0  # of the hindered, those that may come back by themselves: not ready, cordoned, not telling
    claimed: int = 0
    short: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # lacks it now, by resource
    apart: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # enough free, no legal set
    ill: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # would do if all were healthy
    small: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # never has enough of it
    without: dict[str, list[NodeView]] = field(default_factory=lambda: defaultdict(list))  # has none at all
    best: dict[tuple[str, str], str] = field(default_factory=dict)  # of those that lack it now, by cause and resource

    def reason(self, count: int) -> str:
        known = self.roomy or self.claimed or self.short or self.apart or self.ill or self.small or self.without
        if not (known or self.unavailable):
            return "NoMatchingNode"
        if self.before_claims >= count > self.fitting:
            return "Reserved"
        if self.capacity < count and not self.unavailable:
            return "InsufficientCapacity"
        return "InsufficientResources"

    def causes(self) -> list[str]:
        """The most frequent first, each with its count."""
        found = [(len(nodes), f"{_lack(len(nodes), 'free ' + name)} {self.best['short', name]}")
                 for name, nodes in self.short.items()]  # fmt: skip
        found += [(len(nodes), f"{_lack(len(nodes), 'free ' + name + ' that may be used together')} "
                               f"{self.best['apart', name]}") for name, nodes in self.apart.items()]  # fmt: skip
        found += [(len(nodes), f"{_have(len(nodes))} unhealthy {name} {self.best['ill', name]}")
                  for name, nodes in self.ill.items()]  # fmt: skip
        found += [(len(nodes), _too_small(name, nodes)) for name, nodes in self.small.items()]
        found += [(len(nodes), f"{_have(len(nodes))} no {name}") for name, nodes in self.without.items()]
        found += [(number, f"{_are(number)} {why}") for why, number in self.hindered.items()]
        if self.claimed:
            found.append((self.claimed, f"{_are(self.claimed)} kept for jobs that come first"))
        return [f"{number} {text}" for number, text in sorted(found, key=lambda one: (-one[0], one[1]))]


def _survey(books: Books, kept: Books, gang: Gang) -> _Survey:
    survey = _Survey()
    capacities: Counter[str] = Counter()
    nearness = gang.nearness if gang.nearness and gang.nearness.required else None
    for node in books.nodes.values():
        why = _out(node, gang)
        if why is not None:
            survey.hindered[why[0]] += 1
            survey.unavailable += why[1]
            continue
        before = look(books, node, gang).sets
        now = before if kept is books else look(kept, node, gang).sets
        where = domain(node, nearness.level) if nearness else "anywhere"
        empty = _capacity(node, gang)
        survey.largest = max(survey.largest, empty)
        capacities[where] += min(empty, gang.count) if where else 0
        survey.before_claims += min(before, gang.count)
        if now:
            survey.roomy += 1
            survey.fitting += min(now, gang.count)
        elif before:
            survey.claimed += 1
        else:
            _blame(survey, books, node, gang)
    survey.capacity = max(capacities.values(), default=0)
    for resource, nodes in survey.short.items():
        survey.best["short", resource] = _best(books, resource, nodes)
    for resource, nodes in survey.apart.items():
        survey.best["apart", resource] = _best_rings(books, nodes)
    for resource, nodes in survey.ill.items():
        survey.best["ill", resource] = _best_faults(nodes, gang)
    return survey


def _out(node: NodeView, gang: Gang) -> tuple[str, bool] | None:
    """Why a node is out whatever is free on it, and whether that may pass by itself."""
    why = hindrance(node, gang.demand)
    if why is not None:
        return why, why in ("not ready", "cordoned")
    if node.name in gang.without:
        return "avoided by the job for now", True
    if gang.demand.apart == "Required" and node.name in gang.beside:
        return "taken by another pod of the job, beside which the template wants none", True
    view = node.devices
    asked = gang.demand.requests.get(view.resource, 0) if view else 0
    if view is None or not asked:
        return None
    if view.elsewhere:
        return view.elsewhere, False
    if not view.known:
        return f"without word on the health of {view.resource}{f' ({view.trouble})' if view.trouble else ''}", True
    if not may_ask(view.model, asked):
        return f"of model {view.model}, where a pod may ask for {_numbers(view.model)}", False
    return None


def _capacity(node: NodeView, gang: Gang) -> int:
    empty = capacity(node, gang.demand)
    view = node.devices
    if view is None or gang.nearness is None or gang.nearness.level != "ring":
        return empty
    asked = gang.demand.requests.get(view.resource, 0)
    return min(empty, whole(view, asked).in_ring) if asked else empty


def _blame(survey: _Survey, books: Books, node: NodeView, gang: Gang) -> None:
    """What a node without room lacks: something of which it never has enough, healthy devices, or what others hold."""
    used, requests = books.used.get(node.name, {}), gang.demand.requests
    view = node.devices
    asked = requests.get(view.resource, 0) if view else 0
    if not capacity(node, gang.demand):
        never = _never(node, gang.demand)
        (survey.small if node.allocatable.get(never) else survey.without)[never].append(node)
    elif view is not None and asked and not fit(view, {}, asked, Gaze(gang.several, empty=True)).sets:
        survey.ill[view.resource].append(node)
    elif (resource := _scarce(node, used, gang.demand)) is not None:
        survey.short[resource].append(node)
    elif view is not None:
        pods = books.pods.get(node.name, {})
        enough = fit(view, pods, asked, Gaze(healthy=True)).sets
        (survey.ill if enough else survey.apart)[view.resource].append(node)


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


def unservable(books: Books, demand: Demand) -> Obstacle | None:
    """Whether the models of all nodes that have the resource forbid such a number of devices a pod."""
    for name, asked in demand.requests.items():
        having = [node for node in books.nodes.values() if asked and "/" in name and _has(node, name)]
        models = Counter(node.devices.model for node in having if node.devices and node.devices.resource == name)
        if having and models.total() == len(having) and not any(may_ask(model, asked) for model in models):
            numbers = "; ".join(f"{model} (on {_nodes(number)}) takes {_numbers(model)}"
                                for model, number in models.most_common(MOST_NAMED))  # fmt: skip
            return Obstacle("IllegalDeviceCount", f"Needs {asked} {name} a pod, which no model here allows: {numbers}.")
    return None


def _has(node: NodeView, resource: str) -> bool:
    return bool(node.allocatable.get(resource)) or (node.devices is not None and node.devices.resource == resource)


def _numbers(model: str) -> str:
    counts = [str(count) for count in legal(model)]
    return f"{', '.join(counts[:-1])} or {counts[-1]}" if len(counts) > 1 else "any number"


def _no_such_topology(books: Books, gang: Gang) -> Obstacle | None:
    nearness = gang.nearness
    if nearness is None or not nearness.required or nearness.level in NODE_LEVELS:
        return None
    if any(domain(node, nearness.level) for node in books.nodes.values()):
        return None
    exist = []
    for level in ("superpod", "rack"):
        if number := len({domain(node, level) for node in books.nodes.values()} - {""}):
            exist.append(f"{level} ({number})")
    keys = Counter(key for node in books.nodes.values() for key in node.labels
                   if not key.startswith(_PLAIN_LABELS) and key not in (SUPER_POD, RACK))  # fmt: skip
    exist += [f"label {key} (on {_nodes(number)})" for key, number in keys.most_common(MOST_NAMED)]
    return Obstacle("NoSuchTopology", f"Needs all pods in one {_level(nearness.level)}, which no node is in; what "
                                      f"there is: {', '.join(['node', *exist])}.")  # fmt: skip


def _level(level: str) -> str:
    return {"superpod": "super-pod"}.get(level, level if level in ("ring", "node", "rack") else f"domain of {level}")


def _apart(books: Books, kept: Books, gang: Gang, members: Counter[str]) -> str:
    """There is room for all, but not in one domain of the topology that is required."""
    if gang.nearness is None:
        return ""
    level = gang.nearness.level
    home = {domain(books.nodes[name], level) for name in members if name in books.nodes} - {""}
    grouped = by_domain(books, candidates(kept, gang)[-1], level)
    rooms = {name: sum(min(place.room, gang.count) for place in inside) for name, inside in grouped.items()
             if not home or name in home}  # fmt: skip
    if not rooms:
        return f"none of them in the {_level(level)} that the job is in" if home else f"none in a {_level(level)}"
    best = min(rooms, key=lambda one: (-rooms[one], natural(one)))
    return f"no {_level(level)} has room for all (best: {best} for {rooms[best]} of {gang.count})"


def _needs(survey: _Survey, gang: Gang) -> str:
    requests, count = gang.demand.requests, gang.count
    each = ", ".join(show(name, requests[name]) for name in _ordered(requests) if name != "pods")
    where = f" in one {_level(gang.nearness.level)}" if gang.nearness and gang.nearness.required else ""
    if survey.largest <= 1 and not (where and gang.nearness and gang.nearness.level in NODE_LEVELS):
        return f"Needs {_nodes(count)}" + (f" with {each}" if each else "") + where
    return f"Needs room for {count} pod{'s' if count > 1 else ''}" + (
        f" with {each}{' each' if count > 1 else ''}" if each else ""
    ) + where  # fmt: skip


def _found(books: Books, survey: _Survey) -> str:
    total = len(books.nodes)
    if not survey.roomy:
        return "the only node does not have it" if total == 1 else f"none of the {total} nodes has it"
    if survey.fitting == survey.roomy:
        return f"{survey.roomy} of {total} {_have(survey.roomy)} it"
    return f"{survey.fitting} fit on {survey.roomy} of {_nodes(total)}"


def _scarce(node: NodeView, used: Mapping[str, int], demand: Demand) -> str | None:
    """The resource that is to blame: devices before cpu before memory; None if the numbers would do."""
    for name in _ordered(demand.requests):
        if node.allocatable.get(name, 0) - used.get(name, 0) < demand.requests[name]:
            return name
    return None


def _never(node: NodeView, demand: Demand) -> str:
    """The resource of which even the empty node has too little."""
    if (found := _scarce(node, {}, demand)) is not None:
        return found
    assert node.devices is not None  # the numbers would do, so it is the devices
    return node.devices.resource


def _best(books: Books, resource: str, nodes: Iterable[NodeView]) -> str:
    def free(node: NodeView) -> int:
        return max(0, node.allocatable.get(resource, 0) - books.used.get(node.name, {}).get(resource, 0))

    node = min(nodes, key=lambda one: (-free(one), natural(one.name)))
    amounts = show_amount(resource, free(node)), show_amount(resource, node.allocatable.get(resource, 0))
    return f"(best: {node.name} with {amounts[0]} of {amounts[1]} free)"


def _best_rings(books: Books, nodes: Sequence[NodeView]) -> str:
    found = []
    for node in nodes:
        assert node.devices is not None
        free = free_by_ring(node.devices, books.pods.get(node.name, {}))
        found.append((-sum(free.values()), natural(node.name), node.name, "+".join(map(str, free.values()))))
    *_, name, shown = min(found)
    return f"(best: {name} with {shown} free)"


def _best_faults(nodes: Sequence[NodeView], gang: Gang) -> str:
    """The devices that are to blame on the node where they are fewest, by name."""
    found = []
    for node in nodes:
        assert node.devices is not None
        bad = [device for device in node.devices.devices
               if not device.usable or (gang.several and not device.network)]  # fmt: skip
        words = [f"{device.id}: {device.fault or ('no network' if device.usable else 'out of use')}" for device in bad]
        shown = "; ".join(words[:MOST_FAULTS]) + (f"; and {len(bad) - MOST_FAULTS} more" * (len(bad) > MOST_FAULTS))
        found.append((len(bad), natural(node.name), f"(best: {node.name}, {shown})"))
    return min(found)[-1]


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
