"""The store decides by resource version which of two states is newer; the watch survives what API servers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainyard.kube.client import ApiError, Object
from trainyard.kube.watch import Store, Watch


def thing(name: str, version: int, value: int = 0) -> Object:
    return {"metadata": {"namespace": "a", "name": name, "resourceVersion": str(version)}, "value": value}


def store() -> tuple[Store[int], list[tuple[str, int | None, int | None]]]:
    heard: list[tuple[str, int | None, int | None]] = []
    made: Store[int] = Store(lambda raw, old: raw["value"])
    made.listen(lambda *change: heard.append(change))
    return made, heard


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    it, heard = store()
    it.put(thing("x", 5, 50))
    it.put(thing("x", 4, 40))
    assert it.get("a/x") == 50
    assert heard == [("a/x", None, 50)]


def test_the_late_answer_to_a_write_brings_nothing_back() -> None:
    it, _ = store()
    it.put(thing("x", 5))
    it.drop("a/x", 9)
    it.put(thing("x", 7))
    assert it.get("a/x") is None
    it.put(thing("x", 11, 3))  # made anew
    assert it.get("a/x") == 3


def test_a_list_drops_what_it_has_not_but_keeps_what_was_written_after_it() -> None:
    it, heard = store()
    it.put(thing("gone", 3))
    it.put(thing("new", 12, 1))
    assert it.replace([thing("kept", 4, 2)], 10) == 1
    assert dict(it) == {"a/new": 1, "a/kept": 2}
    assert ("a/gone", 0, None) in heard


def test_a_change_of_nothing_that_is_kept_is_not_told() -> None:
    it, heard = store()
    it.put(thing("x", 1, 7))
    it.put(thing("x", 2, 7))
    assert heard == [("a/x", None, 7)]
    assert it.version("a/x") == 2


def test_a_projection_of_none_counts_as_absent() -> None:
    it: Store[int] = Store(lambda raw, old: raw["value"] or None)
    it.put(thing("x", 1, 7))
    it.put(thing("x", 2, 0))
    assert it.get("a/x") is None
    assert len(it) == 0


@given(st.permutations(list(range(1, 9))), st.integers(0, 8))
def test_the_order_of_arrival_does_not_matter(order: list[int], deleted_at: int) -> None:
    """One object lives through versions 1 to 8, deleted at one of them (0: never); news come in any order."""
    it, _ = store()
    for version in order:
        if version == deleted_at:
            it.drop("a/x", version)
        else:
            it.put(thing("x", version, version))
    assert it.get("a/x") == (8 if deleted_at != 8 else None)


def test_one_object_that_cannot_be_read_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    it: Store[int] = Store(lambda raw, old: int(raw["value"]))
    it.put(thing("x", 1, 7))
    it.put(thing("x", 2) | {"value": "seven"})
    assert it.get("a/x") is None
    assert "a/x" in caplog.text
    it.put(thing("x", 3, 8))
    assert it.get("a/x") == 8


class FakeServer:
    """Answers lists and watches as scripted, then blocks."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.lists = 0
        self.asked: list[int] = []
        self.idle = asyncio.Event()

    async def get(self, path: str, query: Mapping[str, Any], *, seconds: float) -> Object:
        step = self.script.pop(0)
        if isinstance(step, ApiError):
            raise step
        self.lists += 1
        return dict(step)

    async def stream(self, path: str, query: Mapping[str, Any], *, seconds: float) -> AsyncIterator[Object]:
        self.asked.append(int(query["resourceVersion"]))
        if not self.script:
            self.idle.set()
            await asyncio.sleep(3600)
        step = self.script.pop(0)
        if isinstance(step, ApiError):
            raise step
        for event in step:
            yield event


def listing(version: int, *items: Object, token: str = "") -> Object:
    return {"metadata": {"resourceVersion": str(version), "continue": token}, "items": list(items)}


async def watched(*script: Any) -> tuple[FakeServer, Watch[int]]:
    server = FakeServer(*script)
    it, _ = store()
    watch: Watch[int] = Watch(server, "things", "/things", it)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    nudging = asyncio.create_task(nudge(watch))
    try:
        await asyncio.wait_for(server.idle.wait(), 5)
    finally:
        task.cancel()
        nudging.cancel()
    return server, watch


async def nudge(watch: Watch[int]) -> None:
    """Instead of waiting for backoffs."""
    while True:
        watch.nudge()
        await asyncio.sleep(0.005)


async def test_pages_events_and_bookmarks() -> None:
    server, watch = await watched(
        listing(5, thing("x", 1, 1), token="more"), listing(5, thing("y", 2, 2)),
        [{"type": "MODIFIED", "object": thing("x", 6, 10)}, {"type": "DELETED", "object": thing("y", 7)},
         {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}])
    assert dict(watch.store) == {"a/x": 10}
    assert server.asked == [5, 9]
    assert watch.synced.is_set()


async def test_a_gone_version_is_listed_again_and_missed_deletions_show() -> None:
    server, watch = await watched(
        listing(5, thing("x", 1, 1), thing("y", 2, 2)),
        [{"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}],
        listing(20, thing("y", 2, 2)))
    assert dict(watch.store) == {"a/y": 2}
    assert (watch.relists, watch.missed) == (2, 1)
    assert server.asked == [5, 20]


async def test_a_lost_connection_goes_on_where_it_was() -> None:
    server, watch = await watched(
        listing(5), ApiError(0, "Unreachable", "reset"), ApiError(503, "ServiceUnavailable", "busy"),
        [{"type": "ADDED", "object": thing("x", 8, 1)}])
    assert server.asked == [5, 5, 5, 8]
    assert watch.failures == 2
    assert server.lists == 1


async def test_it_is_known_since_when_nothing_could_be_missed() -> None:
    _, watch = await watched(listing(5), [{"type": "BOOKMARK", "object": thing("", 6, 0)}])
    assert watch.broken_at is None
    begun = datetime.now(UTC)
    _, watch = await watched(listing(5), ApiError(0, "Unreachable", "reset"), ApiError(410, "Expired", "old"),
                             listing(9))
    assert watch.broken_at is not None
    assert begun <= watch.broken_at <= datetime.now(UTC)


async def test_a_list_whose_continuation_expired_begins_anew() -> None:
    _, watch = await watched(
        listing(5, thing("x", 1), token="t"), ApiError(410, "Expired", "old"), listing(9, thing("x", 1)))
    assert watch.relists == 1
    assert dict(watch.store) == {"a/x": 0}


@pytest.mark.parametrize("event", ["ADDED", "MODIFIED"])
async def test_an_object_that_came_during_the_list_is_not_lost(event: str) -> None:
    _, watch = await watched(listing(5, thing("x", 1, 1)), [{"type": event, "object": thing("z", 6, 9)}])
    assert dict(watch.store) == {"a/x": 1, "a/z": 9}


@pytest.mark.parametrize("trouble", [[], [ApiError(0, "Unreachable", "reset")]])
async def test_what_has_been_silent_is_listed_anew_when_somebody_asks(trouble: list[ApiError]) -> None:
    """A new leader must not act on what it knew before the API server was away."""
    server = FakeServer(listing(5, thing("x", 4, 1)))
    it, _ = store()
    watch: Watch[int] = Watch(server, "things", "/things", it)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(server.idle.wait(), 5)
        await asyncio.wait_for(watch.fresh(5.0), 5)
        assert server.lists == 1, "just listed"
        watch.heard -= 10.0
        server.script = [*trouble, listing(9, thing("x", 8, 2))]
        await asyncio.wait_for(watch.fresh(5.0), 5)
        assert (server.lists, it.get("a/x")) == (2, 2)
    finally:
        task.cancel()


async def test_a_nudge_during_an_attempt_that_fails_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has just come back refuses our own kinds a moment longer than others: tried again at once, and
    from then on as after a first failure."""
    monkeypatch.setattr("trainyard.kube.watch._FIRST_BACKOFF", 0.01)
    away = ApiError(404, "NotFound", "the server could not find the requested resource")
    it, _ = store()

    class Back(FakeServer):
        async def get(self, path: str, query: Mapping[str, Any], *, seconds: float) -> Object:
            if len(self.script) == 2:  # the sixth attempt: somebody else reaches the server
                watch.nudge()
            return await super().get(path, query, seconds=seconds)

    server = Back(*[away] * 5, away, listing(5))
    watch: Watch[int] = Watch(server, "things", "/things", it)  # type: ignore[arg-type]
    backoffs: list[float] = []
    pause = watch._pause

    async def spy(seconds: float, following: float) -> float:
        backoffs.append(await pause(seconds, following))
        return backoffs[-1]

    watch._pause = spy  # type: ignore[method-assign]
    task = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(server.idle.wait(), 5)
    finally:
        task.cancel()
    assert backoffs == [0.02, 0.04, 0.08, 0.16, 0.32, 0.01]


async def test_one_watch_feeds_two_views() -> None:
    server = FakeServer(
        listing(5, thing("x", 1, 1), thing("y", 2, 2)),
        [{"type": "MODIFIED", "object": thing("x", 6, 10)}, {"type": "DELETED", "object": thing("y", 7)}])
    (it, _), (other, heard) = store(), store()
    watch: Watch[int] = Watch(server, "things", "/things", it, also=other)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(server.idle.wait(), 5)
    finally:
        task.cancel()
    assert dict(it) == dict(other) == {"a/x": 10}
    assert ("a/y", 2, None) in heard
