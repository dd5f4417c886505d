"""Who is waited for: from how many collectives each rank has begun in each group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from trainyard.api.protocol import Position


@dataclass(frozen=True, slots=True)
class Behind:
    """A rank that has begun fewer collectives than others of a group, who wait for it there."""

    rank: int
    group: str
    issued: int
    others: int  # the most that another has begun

    def __str__(self) -> str:
        return f"rank {self.rank} has begun {self.issued:,} collectives in group {self.group}, others {self.others:,}"


def behind(positions: Iterable[Position]) -> list[Behind]:
    """The ranks that others wait for while they wait for nobody themselves; none if all are equally far.

    A rank that is behind in one group because it waits in another is a victim: there it is ahead of somebody."""
    groups: dict[str, dict[int, int]] = defaultdict(dict)
    for one in positions:
        groups[one.group][one.rank] = one.issued
    uneven = {name: ranks for name, ranks in groups.items() if min(ranks.values()) < max(ranks.values())}
    waiting = {rank for ranks in uneven.values() for rank, issued in ranks.items() if issued > min(ranks.values())}
    found: dict[int, Behind] = {}
    for name, ranks in sorted(uneven.items()):
        least, most = min(ranks.values()), max(ranks.values())
        for rank, issued in sorted(ranks.items()):
            if issued == least and rank not in waiting:
                found.setdefault(rank, Behind(rank, name, least, most))
    return [found[rank] for rank in sorted(found)]
