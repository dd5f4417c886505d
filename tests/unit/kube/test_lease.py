"""Two candidates, a record in memory, and a clock that the test turns."""

from __future__ import annotations

import asyncio
import copy

import pytest
from trainyard.kube import lease as module
from trainyard.kube.client import ApiError, Object
from trainyard.kube.lease import LeadershipLost, Lease


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Api:
    """One Lease with optimistic locking; `away` makes every request fail, `slow` makes it take that long."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.record: Object | None = None
        self.away = False
        self.slow = 0.0

    def _pass(self) -> None:
        self.clock.now += self.slow
        if self.away:
            raise ApiError(0, "Unreachable", "away")

    async def get(self, path: str, *, seconds: float) -> Object:
        self._pass()
        if self.record is None:
            raise ApiError(404, "NotFound", "no lease")
        return copy.deepcopy(self.record)

    async def write(self, method: str, path: str, body: Object, *, gated: bool, seconds: float) -> Object:
        self._pass()
        assert not gated
        held = self.record["metadata"]["resourceVersion"] if self.record else None
        if (method == "POST") != (held is None) or body["metadata"].get("resourceVersion") != held:
            raise ApiError(409, "Conflict", "changed meanwhile")
        self.record = copy.deepcopy(body)
        self.record["metadata"]["resourceVersion"] = str(int(held or 0) + 1)
        return copy.deepcopy(self.record)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    return made


def candidate(api: Api, name: str) -> Lease:
    return Lease(api, "ns", "lease", name)  # type: ignore[arg-type]


async def test_one_of_two_leads(clock: Clock) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    assert await one._try()
    assert not await two._try()
    assert one.seconds_left() == 7.0
    assert two.seconds_left() < 0
    assert two.holder == "one"


async def test_a_follower_waits_for_the_whole_lease_on_its_own_clock(clock: Clock) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    await one._try()
    clock.now += 100  # nobody renewed for long, but two has only now seen the record
    assert not await two._try()
    clock.now += 9.9
    assert not await two._try()
    clock.now += 0.2
    assert await two._try()
    assert one.seconds_left() < 0


async def test_the_next_start_of_a_container_waits_for_nobody(clock: Clock) -> None:
    api = Api(clock)
    assert await candidate(api, "pod-1_aaaa")._try()
    assert not await candidate(api, "pod-1_bbbb")._try(), "only who knows that the other has ended"
    other = Lease(api, "ns", "lease", "pod-2_cccc", predecessor="pod-2_")  # type: ignore[arg-type]
    assert not await other._try()
    again = Lease(api, "ns", "lease", "pod-1_dddd", predecessor="pod-1_")  # type: ignore[arg-type]
    assert await again._try()
    assert again.seconds_left() > 0


async def test_the_leader_stops_before_a_follower_may_take_over(clock: Clock) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    await one._try()
    await two._try()
    api.away = True
    for _ in range(12):
        clock.now += 1
        await one._try()
        if one.seconds_left() > 0:
            assert not two._free(api.record or {})


async def test_slow_answers_count_from_before_the_request(clock: Clock) -> None:
    api = Api(clock)
    one = candidate(api, "one")
    api.slow = 2.0
    assert await one._try()
    assert one.seconds_left() == pytest.approx(7.0 - 2 * 2.0)


async def test_hold_gives_up_when_it_cannot_renew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(clock)
    one = candidate(api, "one")
    await one._try()

    async def passing(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 1005:
            api.away = True

    monkeypatch.setattr(asyncio, "sleep", passing)
    with pytest.raises(LeadershipLost):
        await one.hold()
    assert one.seconds_left() <= 0


async def test_hold_gives_up_at_once_when_another_holds_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    await one._try()
    await two._try()
    clock.now += 10
    assert await two._try()

    async def passing(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(asyncio, "sleep", passing)
    with pytest.raises(LeadershipLost, match="two"):
        await one.hold()
    assert two.seconds_left() > 0


async def test_a_released_lease_is_free_at_once(clock: Clock) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    await one._try()
    assert not await two._try()
    await one.release()
    assert one.seconds_left() < 0
    assert await two._try()
    assert (api.record or {})["spec"]["leaseTransitions"] == 3  # taken, released, taken


async def test_two_that_try_at_the_same_moment(clock: Clock) -> None:
    api = Api(clock)
    one, two = candidate(api, "one"), candidate(api, "two")
    read = await one._read(), await two._read()
    assert read == (None, None)
    assert await one._try()
    with pytest.raises(ApiError):
        await api.write("POST", "", two._body(None), gated=False, seconds=1)


def test_durations_that_could_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="must exceed"):
        Lease(None, "ns", "lease", "x", duration=5, renew=3, margin=2)  # type: ignore[arg-type]


