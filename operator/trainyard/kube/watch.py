"""A watch cache: all objects of one kind, as small values, kept up to date.

List in pages, watch with bookmarks, list again after a 410 and every few minutes. What this process wrote itself is put
in at once (`Store.put` with the API server's answer), so a reader always sees its own writes; resource versions decide
which of two states is newer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from trainyard.kube.client import ApiError, Client, Object

T = TypeVar("T")
log = logging.getLogger(__name__)

_PAGE = 500
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 20.0  # seconds between attempts, before jitter
_FRESH_SECONDS = 5.0  # a server that was heard so recently has told all that matters
_TOMBSTONES = 2048  # deletions remembered, so that the late answer to a write brings nothing back


def key_of(raw: Object) -> str:
    """namespace/name, or the name alone of what has no namespace."""
    metadata = raw["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def version_of(raw: Object) -> int:
    """The resource version, which Kubernetes lets clients compare as a number."""
    return int(raw["metadata"].get("resourceVersion") or 0)


class Held(NamedTuple, Generic[T]):
    """One object in a store."""

    version: int
    value: T


class Store(Generic[T]):
    """Objects of one kind by key. Listeners hear (key, old, new) of every change of a *value*; None means absent."""

    def __init__(self, project: Callable[[Object, T | None], T | None]) -> None:
        self._project = project
        self._held: dict[str, Held[T]] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        self._listeners: list[Callable[[str, T | None, T | None], None]] = []

    def listen(self, listener: Callable[[str, T | None, T | None], None]) -> None:
        """Call `listener` from now on."""
        self._listeners.append(listener)

    def get(self, key: str) -> T | None:
        """The value, or None."""
        held = self._held.get(key)
        return held.value if held else None

    def version(self, key: str) -> int:
        """Resource version of the state that is held; 0 if none is."""
        held = self._held.get(key)
        return held.version if held else 0

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return ((key, held.value) for key, held in self._held.items())

    def __len__(self) -> int:
        return len(self._held)

    def put(self, raw: Object) -> None:
        """Take a state in, unless a newer one (or a newer deletion) is known. A projection of None counts as absent."""
        key, version = key_of(raw), version_of(raw)
        held = self._held.get(key)
        if (held and version <= held.version) or version <= self._gone.get(key, -1):
            return
        old = held.value if held else None
        new = self._read(key, raw, old)
        if new is None:
            self._held.pop(key, None)
            self._bury(key, version)
        else:
            self._held[key] = Held(version, new)
        if new != old:
            self._tell(key, old, new)

    def _read(self, key: str, raw: Object, old: T | None) -> T | None:
        """One object that nobody foresaw must not end the operator, which would read it again at once."""
        try:
            return self._project(raw, old)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s %s cannot be read and is left out: %r", raw.get("kind") or "object", key, error)
            return None

    def drop(self, key: str, version: int) -> None:
        """Take a deletion in that happened at `version`; a state that is newer stays."""
        held = self._held.get(key)
        if held and held.version > version:
            return
        self._bury(key, version)
        if self._held.pop(key, None) is not None and held:
            self._tell(key, held.value, None)

    def forget(self, key: str) -> None:
        """The API server has just said that it is not there (404)."""
        if held := self._held.pop(key, None):
            self._tell(key, held.value, None)

    def revise(self, change: Callable[[T], T]) -> None:
        """Other values for the same states; nobody is told."""
        for key, held in list(self._held.items()):
            self._held[key] = held._replace(value=change(held.value))

    def replace(self, listed: list[Object], version: int) -> int:
        """Take in a complete list as of `version`; returns how many deletions had been missed."""
        there = set()
        for raw in listed:
            there.add(key_of(raw))
            self.put(raw)
        return self.prune(there, version)

    def prune(self, there: set[str], version: int) -> int:
        """Drop everything that a complete list as of `version` did not have; returns how much that was."""
        missed = [key for key, held in self._held.items() if key not in there and held.version <= version]
        for key in missed:
            self.drop(key, version)
        return len(missed)

    def _bury(self, key: str, version: int) -> None:
        self._gone[key] = version
        self._gone.move_to_end(key)
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)

    def _tell(self, key: str, old: T | None, new: T | None) -> None:
        for listener in self._listeners:
            listener(key, old, new)


async def list_pages(client: Client, path: str, query: Mapping[str, Any], take: Callable[[Object], None]) -> int:
    """Give every object of a list to `take`, page by page; returns the list's resource version. Raises ApiError (410
    if the list took so long that its continuation expired)."""
    token: str | None = None
    while True:
        page = await client.get(path, {**query, "limit": _PAGE, "continue": token}, seconds=60)
        for raw in page.get("items") or ():
            take(raw)
        metadata = page.get("metadata") or {}
        token = metadata.get("continue") or None
        if token is None:
            return int(metadata.get("resourceVersion") or 0)


class Watch(Generic[T]):
    """Keeps a Store (or two) equal to what the API server has."""

    def __init__(self, client: Client, name: str, path: str, store: Store[T], query: Mapping[str, Any] | None = None,
                 *, also: Store[Any] | None = None, relist_seconds: float = 300.0) -> None:
        """`also`: another view of the same objects, fed by the same watch."""
        self.name = name
        self.store = store
        self._stores = [store, *([also] if also is not None else [])]
        self.synced = asyncio.Event()
        self.beat = time.monotonic()  # when this loop last did anything at all
        self.heard = 0.0  # when the API server last said something; 0: never
        self.broken_at: datetime | None = None  # when it last could not be heard; None: it always could
        self.relists = 0
        self.failures = 0
        self.missed = 0  # deletions that only a list showed
        self._client = client
        self._path = path
        self._query = dict(query or {})
        self._relist_seconds = relist_seconds
        self._nudged = asyncio.Event()

    @property
    def lag(self) -> float:
        """Seconds since the API server was last heard."""
        return time.monotonic() - self.heard if self.heard else float("inf")

    def nudge(self) -> None:
        """The API server is known to answer again: do not wait any longer."""
        self._nudged.set()

    async def fresh(self, seconds: float) -> None:
        """Return when the store holds what the API server has now, or after this long: lists once more unless the
        server was heard a moment ago. The watch goes on meanwhile; versions decide what is newer."""
        if self.lag < _FRESH_SECONDS and not self._broke_lately():
            return
        pause = _FIRST_BACKOFF
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await self._list()
                        return
                    except ApiError as error:
                        log.info("list of %s failed, trying again: %s", self.name, error)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                    pause *= 2
        except TimeoutError:
            log.warning("the cache of %s may be %.0f s behind", self.name, self.lag)

    def _broke_lately(self) -> bool:
        return self.broken_at is not None and (datetime.now(UTC) - self.broken_at).total_seconds() < _FRESH_SECONDS

    async def _pause(self, seconds: float, following: float) -> float:
        """Wait that long, or until nudged, which counts even if it came while the last attempt was still being made: a
        server that has just come back refuses some kinds a moment longer than others. Returns the next backoff."""
        try:
            await asyncio.wait_for(self._nudged.wait(), seconds)
        except TimeoutError:
            return min(following, _LAST_BACKOFF)
        self._nudged.clear()
        return _FIRST_BACKOFF

    async def run(self) -> None:
        """Until cancelled."""
        version, list_at, wait = 0, 0.0, _FIRST_BACKOFF
        while True:
            self.beat = time.monotonic()
            try:
                if not version or time.monotonic() >= list_at:
                    version = await self._list()
                    list_at = time.monotonic() + self._relist_seconds * random.uniform(0.9, 1.1)
                begun = time.monotonic()
                async for seen in self._events(version, max(1.0, list_at - begun)):
                    version = seen
                    self.heard = self.beat = time.monotonic()
                if time.monotonic() - begun < 1.0:  # a server on its way down opens watches only to end them
                    wait = await self._pause(wait * random.uniform(0.5, 1.5), wait * 2)
                else:
                    wait = _FIRST_BACKOFF
            except ApiError as error:
                self.failures += 1
                if error.status == 410:
                    version = 0
                else:
                    self.broken_at = datetime.now(UTC)
                log.log(logging.INFO if error.status in (0, 410) else logging.WARNING,
                        "watch of %s broke, trying again: %s", self.name, error)
                pause = max(error.retry_after or 0.0, wait * random.uniform(0.5, 1.5))
                wait = await self._pause(pause, wait * 2)

    async def _list(self) -> int:
        there: set[str] = set()

        def take(raw: Object) -> None:
            self.beat = time.monotonic()
            there.add(key_of(raw))
            self._put(raw)

        version = await list_pages(self._client, self._path, self._query, take)
        missed = max(store.prune(there, version) for store in self._stores)
        if self.relists and missed:
            self.missed += missed
            log.info("list of %s showed %d deletions that the watch had missed", self.name, missed)
        self.relists += 1
        self.heard = self.beat = time.monotonic()
        if not self.synced.is_set():
            self.synced.set()
        return version

    def _put(self, raw: Object) -> None:
        for store in self._stores:
            store.put(raw)

    async def _events(self, version: int, seconds: float) -> Any:
        """Yield the resource version after each event; returns when the watch has run its time."""
        query = {**self._query, "resourceVersion": version}
        async for event in self._client.stream(self._path, query, seconds=min(seconds, random.uniform(240, 360))):
            kind, raw = event["type"], event["object"]
            if kind == "ERROR":
                code = int(raw.get("code") or 0)
                raise ApiError(code, str(raw.get("reason") or "Error"), str(raw.get("message") or ""))
            if kind == "DELETED":
                for store in self._stores:
                    store.drop(key_of(raw), version_of(raw))
            elif kind != "BOOKMARK":
                self._put(raw)
            yield version_of(raw)
