"""Which pods hold the copies of a rank's state: pods on other nodes where there are any, each as many as the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from trainer.checkpoint.replicas import Replicas

ALONE = Replicas()


class Buddies:
    """The pods of a gang as those that hold each other's copies."""

    def __init__(self, pods: Sequence[int], hosts: Sequence[str], copies: int, apart: bool = True,
                 replicas: Replicas = ALONE) -> None:
        """`pods` has the first rank of each rank's pod, `hosts` the node of each rank. With `apart` pods on other nodes
        come first; if no node holds more than half of the pods, each pod then holds as many copies as without. Nodes
        with replicas come after those that have nothing of a rank's state."""
        self._pods, self._hosts, self._copies, self._apart = pods, hosts, copies, apart
        self._ranks: dict[int, list[int]] = {}
        self._known: dict[int, set[str]] = {}  # by pod
        first: dict[str, int] = {}
        for rank, (pod, host) in enumerate(zip(pods, hosts, strict=True)):
            self._ranks.setdefault(pod, []).append(rank)
            self._known.setdefault(pod, set()).update(replicas.hosts(rank, hosts))
            first.setdefault(host, rank)
        self._order = sorted(self._ranks, key=lambda pod: (first[hosts[pod]], pod))  # those of a node side by side
        self._places = {pod: number for number, pod in enumerate(self._order)}
        # One that is further away in the order than the largest node is on another one.
        self._step = max(Counter(hosts[pod] for pod in self._order).values()) if apart else 1

    def of(self, rank: int) -> list[int]:
        """Ranks in other pods, as many as there are copies, whose copiers hold those of this one; fewer if there are
        fewer pods. Of each pod the rank with the same place, so that load is even."""
        place = self._ranks[self._pods[rank]].index(rank)
        there = [self._ranks[pod] for pod in self._of_pod(self._pods[rank])]
        return [ranks[place % len(ranks)] for ranks in there]

    def most_kept(self, own: int, held: int) -> int:
        """Slots in the pod that has most of them, with so many for each rank of its own, and for each of others."""
        kept = Counter({pod: own * len(ranks) for pod, ranks in self._ranks.items()})
        for pod, ranks in self._ranks.items():
            for other in self._of_pod(pod):
                kept[other] += held * len(ranks)
        return max(kept.values())

    @property
    def outlive_node(self) -> bool:
        """Whether every rank that has copies has one on another node."""
        return all(not found or any(self._hosts[other] != self._hosts[pod] for other in found)
                   for pod, found in ((pod, self._of_pod(pod)) for pod in self._order))

    def _of_pod(self, pod: int) -> list[int]:
        hosts, used = self._hosts, Counter[str]()
        chosen: list[int] = []
        if self._apart:
            used.update(self._known[pod])
            used[hosts[pod]] = len(self._order)  # last
            for other in self._others(pod) if self._copies else ():
                if not used[hosts[other]]:
                    chosen.append(other)
                    used[hosts[other]] += 1
                    if len(chosen) == self._copies:
                        return chosen
        rest = [other for other in self._others(pod) if other not in chosen]
        while rest and len(chosen) < self._copies:
            chosen.append(min(rest, key=lambda other: used[hosts[other]]))
            rest.remove(chosen[-1])
            used[hosts[chosen[-1]]] += int(self._apart)
        return chosen

    def _others(self, pod: int) -> Iterator[int]:
        """In the order, from the first that is not on a neighbouring place of the same node."""
        here, number = self._places[pod], len(self._order)
        for distance in range(number):
            other = self._order[(here + self._step + distance) % number]
            if other != pod:
                yield other
