"""The books: which node's resources are taken by whom, kept up to date pod by pod.

Three sources say that a pod is on a node, the first that knows a pod wins: the watches of all bound pods; our own pods
that are pinned but not yet bound; pods that a plan has just placed and that are still to be created.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from trainyard.kube.views import OwnPod, Usage
from trainyard.placement.books import Resources


class Entry(NamedTuple):
    """One pod's place and what it takes there."""

    node: str
    requests: Resources


class Ledger:
    """Sums by node over all pods, and by node the pods that request devices; both are live and must not be changed."""

    def __init__(self) -> None:
        self.used: dict[str, dict[str, int]] = {}
        self.pods: dict[str, dict[str, Resources]] = {}
        self._bound: dict[str, Entry] = {}
        self._pinned: dict[str, Entry] = {}
        self._assumed: dict[str, Entry] = {}

    @property
    def assumed(self) -> Mapping[str, Entry]:
        """Placed pods that are still to be created."""
        return self._assumed

    def bound(self, key: str, usage: Usage | None) -> None:
        """The watch of all pods says so; None: no longer there, or finished."""
        self._set(self._bound, key, Entry(usage.node, usage.requests) if usage else None)

    def own(self, key: str, pod: OwnPod | None) -> None:
        """The watch of our pods says so."""
        place = pod and not pod.view.finished and (pod.view.node or pod.view.pinned)
        self._set(self._pinned, key, Entry(place, pod.requests) if pod and place else None)

    def assume(self, key: str, node: str, requests: Resources) -> None:
        """A plan has given this pod a place."""
        self._set(self._assumed, key, Entry(node, requests))

    def dismiss(self, keys: Iterable[str]) -> None:
        """These are created (then the watch knows them) or will not be."""
        for key in keys:
            self._set(self._assumed, key, None)

    def _entry(self, key: str) -> Entry | None:
        return self._bound.get(key) or self._pinned.get(key) or self._assumed.get(key)

    def _set(self, layer: dict[str, Entry], key: str, entry: Entry | None) -> None:
        before = self._entry(key)
        if entry is None:
            layer.pop(key, None)
        else:
            layer[key] = entry
        after = self._entry(key)
        if before != after:
            if before:
                self._count(before, -1)
                self._name(key, before, None)
            if after:
                self._count(after, 1)
                self._name(key, after, after.requests)

    def _name(self, key: str, entry: Entry, requests: Resources | None) -> None:
        if any("/" in name for name in entry.requests):
            named = self.pods.setdefault(entry.node, {})
            if requests is None:
                named.pop(key, None)
            else:
                named[key] = requests
            if not named:
                del self.pods[entry.node]

    def _count(self, entry: Entry, sign: int) -> None:
        sums = self.used.setdefault(entry.node, {})
        for name, amount in entry.requests.items():
            left = sums.get(name, 0) + sign * amount
            if left:
                sums[name] = left
            else:
                sums.pop(name, None)
        if not sums:
            del self.used[entry.node]
