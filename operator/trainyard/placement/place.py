"""Places for a whole gang, or the reason why there are none (docs/placement.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from trainyard.placement.arrange import arrange
from trainyard.placement.books import Books, Demand, Gang, Nearness, Obstacle
from trainyard.placement.candidates import candidates
from trainyard.placement.claims import Claim, reserve
from trainyard.placement.domains import whereabouts
from trainyard.placement.obstacle import explain
from trainyard.placement.quantities import show_amount


class QuotaLeft(Protocol):
    """What a ResourceQuota still allows, by its own resource names (placement.quantities.quota_left)."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def left(self) -> Mapping[str, int]:
        """Hard less used."""


def place(
    books: Books,
    demand: Demand,
    indices: Iterable[int],
    taken: Mapping[int, str] | None = None,
    avoid: Mapping[str, str] | None = None,
    reserved: Sequence[Claim] = (),
    *,
    nearness: Nearness | None = None,
    without: Collection[str] = (),
    spoiled: Mapping[str, Collection[str]] | None = None,
    mates: Collection[str] = (),
    others: Collection[str] = (),
    loose: bool = False,
) -> dict[int, str] | Obstacle:
    """A node for each of the indices, or why the gang has no place: all of them or none.

    `taken` says where the rest of the gang is, `mates` its pods (namespace/name), `others` where pods of the job are
    that are no members, or none any more; the books count all of those already. Nodes in `avoid` (node: reason) and
    devices in `spoiled` (by node) are used only if the gang has no place without them, nodes in `without` never.
    `loose`: better on nodes without the rest of the gang, whatever they ask for. What `reserved` gangs, which come
    first, need or wait for is not given away. The same input always gives the same answer.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return {}
    there = (taken or {}).values()
    gang = Gang(demand, len(wanted), len(wanted) + len(there), nearness, without, avoid or {}, spoiled or {}, mates,
                frozenset({*there, *others}), loose)  # fmt: skip
    kept = books
    for claim in reserved:
        kept = reserve(kept, claim)
    members, near = whereabouts(books, there)
    for choice in candidates(kept, gang):
        loads = arrange(books, choice, gang, members, near)
        if loads is not None:
            ordered = sorted((place for place in choice if loads[place.node]), key=lambda place: place.order)
            slots = [place.node for place in ordered for _ in range(loads[place.node])]
            return dict(zip(wanted, slots, strict=True))
    return explain(books, kept, gang, members)


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
