"""The master's store and the links of members to it, over loopback."""

from __future__ import annotations

import selectors
import time
from collections import Counter

import pytest
from supervisor import events as e
from supervisor.store import BEAT, NEAR_BEAT, StoreLink, StoreServer

TOKEN = "0123456789abcdef"


def test_neighbours_of_the_master_are_heard_of_often_and_others_now_and_then() -> None:
    selector, beats, members = selectors.DefaultSelector(), Counter[int](), dict[int, int]()

    def at_the_master(event: e.Event) -> None:
        if isinstance(event, e.MemberHello):
            members[event.connection] = event.hello.index
        elif isinstance(event, e.MemberBeat):
            beats[members[event.connection]] += 1

    server = StoreServer(selector, TOKEN, "127.0.0.1", lambda: 4, at_the_master)
    links = []
    for index, near in ((1, True), (2, False)):
        member = e.Member("job", f"job-{index}-1", f"uid-{index}", "127.0.0.1", index, 1, 1, 30)
        links.append(StoreLink(selector, e.Link(server.address, TOKEN, 4, near), member, str, lambda _: None,
                               lambda _: None))  # fmt: skip
    parts: list[StoreServer | StoreLink] = [*links, server]
    end = time.monotonic() + BEAT + 3 * NEAR_BEAT
    while (now := time.monotonic()) < end:
        for key, mask in selector.select(max(0.0, min(part.deadline() for part in parts) - now)):
            key.data(mask)
        for part in parts:
            part.step()
    for part in parts:
        part.close()
    selector.close()
    assert beats[1] >= 4
    assert beats[2] == pytest.approx(1, abs=1)
