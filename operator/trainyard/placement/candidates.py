"""The nodes that have room for a gang's pods now, and what each would cost."""

from __future__ import annotations

from dataclasses import replace

from trainyard.placement.books import Books, Gang, NodeView, Resources
from trainyard.placement.domains import domains
from trainyard.placement.matching import hindrance, reluctance
from trainyard.placement.price import Kind, Place
from trainyard.placement.room import natural, room, seats
from trainyard.placement.seats import Fit, Gaze


def candidates(books: Books, gang: Gang) -> list[list[Place]]:
    """Choices, the best first: without avoided nodes and without devices that are better left alone (sub-healthy, or
    avoided by the job); with such devices; with such nodes as well. Each holds the one before."""
    clean, spoiled, avoided = [], [], []
    dirty = False
    barred = {*gang.without, *(gang.beside if gang.demand.apart == "Required" else ())}
    for name, node in books.nodes.items():
        used = books.used.get(name, {})
        if name in barred or not room(node, used, gang.demand.requests):
            continue
        if hindrance(node, gang.demand) is not None or not (found := look(books, node, gang)).sets:
            continue
        place = _place(node, used, gang, found)
        if name in gang.avoid:
            avoided.append(place)
            continue
        spoiled.append(place)
        dirty = dirty or found.clean < found.sets
        if found.clean:
            clean.append(place if found.clean == found.sets else replace(place, room=found.clean))
    choices = [clean, spoiled] if dirty else [clean]
    return [*choices, spoiled + avoided] if avoided else choices


def look(books: Books, node: NodeView, gang: Gang) -> Fit:
    """How many of the gang's pods fit on the node now. With topology ring a node is as large as the ring that the next
    pod would get: nobody can tell kubelet which one to take."""
    gaze = Gaze(gang.several, gang.spoiled.get(node.name, ()))
    pods = books.pods.get(node.name, {})
    found = seats(node, books.used.get(node.name, {}), pods, gang.demand.requests, gaze)
    if gang.demand.apart == "Required":
        found = replace(found, sets=min(1, found.sets), clean=min(1, found.clean))
    if gang.nearness is None or gang.nearness.level != "ring" or not gang.nearness.required:
        return found
    fits = found.in_ring if found.ring in _rings(node, gang) else 0
    return replace(found, sets=fits, clean=min(fits, found.clean))


def _rings(node: NodeView, gang: Gang) -> set[int]:
    """The rings that the gang may use: the one it is in, or any."""
    if node.devices is None:
        return {0}
    home = {device.ring for device in node.devices.devices if device.holder in gang.mates}
    return home or {device.ring for device in node.devices.devices}


def _place(node: NodeView, used: Resources, gang: Gang, found: Fit) -> Place:
    where = domains(node)
    order = (*map(natural, where), natural(node.name))
    foreign, own = _left_over(node, used, gang.demand.requests, found)
    kind = Kind(found.sets, found.clean, node.name in gang.avoid, reluctance(node, gang.demand), foreign, found.ranks,
                found.broken, own)  # fmt: skip
    return Place(node.name, found.sets, where, order, kind)


def _left_over(node: NodeView, used: Resources, requests: Resources, found: Fit) -> tuple[int, int]:
    """Free devices that the pod does not use, of kinds that it does not ask for and of kinds that it does."""
    foreign = own = 0
    for name, amount in node.allocatable.items():
        if "/" in name:
            free = amount - used.get(name, 0)
            if not requests.get(name):
                foreign += free
            elif node.devices is not None and node.devices.resource == name:
                own += found.left
            else:
                own += free
    return foreign, own
