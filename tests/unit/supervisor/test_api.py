"""The supervisor's two threads that talk to the API, against a server over real sockets."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
from supervisor import events as e
from supervisor.api import Api
from unit.supervisor.fake_api import FakeApi

WORLD = {"protocol": 1, "job": "job-uid", "generation": 1, "phase": "Run", "size": 1, "token": "0123456789abcdef"}


class Talk:
    """An Api, and what it has posted."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.events: queue.Queue[e.Event] = queue.Queue()
        self.said: list[str] = []
        self.api = Api({"TRAINYARD_NAMESPACE": "team", "TRAINYARD_JOB": "j", "TRAINYARD_POD": "j-0-1",
                        "TRAINYARD_POD_UID": "uid", "TRAINYARD_API_SERVER": fake.url},
                       self.events.put, self.said.append)
        self.api.start()

    def wait(self, kind: type[e.Event]) -> e.Event:
        """The next event of this kind."""
        while True:
            event = self.events.get(timeout=20)
            if isinstance(event, kind):
                return event

    def report(self, sequence: int) -> None:
        """Write a report and wait until the server has it."""
        self.api.write({"kind": "Formed", "generation": 1, "sequence": sequence})
        self.fake.wait_report(lambda _, spec: spec["sequence"] == sequence, 20)


@pytest.fixture
def talk(api: FakeApi) -> Iterator[Talk]:
    api.put_world("j", WORLD)
    made = Talk(api)
    yield made
    made.api.flush(1)


def test_a_server_that_ends_the_connection_with_its_answer(talk: Talk) -> None:
    """As the API server does when it is told to end, or has too much to do."""
    talk.wait(e.WorldSeen)
    talk.fake.closes = True
    for sequence in range(1, 4):
        talk.report(sequence)
    talk.api.read_world()
    talk.wait(e.WorldSeen)


def test_an_answer_that_is_no_object_is_told_and_asked_for_again(talk: Talk) -> None:
    talk.wait(e.WorldSeen)
    talk.fake.nonsense = True
    talk.api.read_world()
    talk.report(1)
    talk.fake.cut()  # the watch begins anew as well
    while not any("makes no sense" in said for said in talk.said):
        talk.api.read_world()
        talk.events.get(timeout=20)
    talk.fake.nonsense = False
    talk.wait(e.WorldSeen)
    talk.report(2)


def test_a_report_that_the_server_does_not_take_is_written_without_words(talk: Talk) -> None:
    """Whatever is wrong with them: the gang must not wait for it for ever."""
    talk.wait(e.WorldSeen)
    talk.fake.unwelcome = "rude"
    talk.api.write({
        "kind": "RankFailed", "generation": 1, "sequence": 1, "warnings": [{"reason": "R", "message": "rude"}],
        "failure": {"root": True, "rank": 3, "exitCode": 1, "reason": "rude", "text": "rude"},
        "progress": {"step": 7, "durableStep": 5, "activity": "rude"}})  # fmt: skip
    spec = talk.fake.wait_report(lambda _, spec: spec["sequence"] == 1, 20)
    assert spec["failure"] == {"root": True, "rank": 3, "exitCode": 1}
    assert spec["progress"] == {"step": 7, "durableStep": 5}
    assert "warnings" not in spec
    (said,) = talk.said
    assert "going on without words" in said
