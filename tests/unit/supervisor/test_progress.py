"""The progress line."""

from __future__ import annotations

import pytest
from supervisor.progress import parse


def test_a_whole_line_keeps_its_digits() -> None:
    parsed = parse(b'{"step": 12, "steps": 1000, "loss": 2.310, "evaluationLoss": null, "tokensPerSecond": 8123.7, '
                   b'"durableStep": 10, "secondsPerStep": 8e-1, "expertImbalance": 1.310, "data": 1, "shard": 4, '
                   b'"resumedStep": 4, "finishedStep": 6, "memorySkipped": 2, '
                   b'"more": {}, '
                   b'"warnings": [{"reason": "CheckpointFailed", "message": "disk full"}, 3, {}]}\n')
    assert parsed.fields == {"step": 12, "steps": 1000, "loss": "2.310", "tokensPerSecond": 8123, "durableStep": 10,
                             "secondsPerStep": "8e-1", "expertImbalance": "1.310", "data": 1, "shard": 4,
                             "resumedStep": 4, "finishedStep": 6, "memorySkipped": 2}
    assert parsed.warnings == (("CheckpointFailed", "disk full"),)


def test_layouts_that_were_measured() -> None:
    parsed = parse(b'{"step": 0, "tuned": "a", "measured": [{"name": "a", "layout": "data 2", "secondsPerStep": 0.50}, '
                   b'{"name": "b", "problem": "no memory", "more": 1}]}')
    assert parsed.fields["measured"] == [{"name": "a", "layout": "data 2", "secondsPerStep": "0.50"},
                                         {"name": "b", "problem": "no memory"}]


@pytest.mark.parametrize(("line", "why"), [
    (b"", "JSON"), (b"{", "JSON"), (b"[1]", "list"), (b"\xff\xfe", "JSON"), (b"{}", "step"), (b'{"step": "x"}', "step"),
    (b'{"step": -1}', "step"), (b'{"step": true}', "step"), (b'{"step": NaN}', "step"), (b'{"step": 1e99}', "step"),
    (b'{"step": 1, "loss": "low"}', "loss"), (b'{"step": 1, "loss": []}', "loss"), (b"[" * 100000, "JSON"),
    (b'{"step": 1, "protection": "Everything"}', "expected one of Node, Pod, Unprotected"),
    (b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", "loss"), (b'{"step": 1, "restoredAt": "now"}', "restoredAt"),
    (b'{"step": 1, "restoredAt": "0001-01-01T00:00:00+14:00"}', "restoredAt"),
    (b'{"step": 1, "measured": [{}]}', "measured"), (b'{"step": 1, "measured": {"name": "a"}}', "measured"),
])
def test_garbage_is_refused_with_a_reason(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(line)


@pytest.mark.parametrize("told", ["2026-11-20T12:00:00", "2026-11-20T12:00:00Z", "2026-11-20 14:00:00+02:00"])
def test_times_are_told_as_the_api_takes_them(told: str) -> None:
    parsed = parse(b'{"step": 1, "connectedAt": "%s"}' % told.encode())
    assert parsed.fields["connectedAt"] == "2026-11-20T12:00:00.000000Z"


def test_a_loss_that_is_no_number_is_passed_on() -> None:
    assert parse(b'{"step": 1, "loss": NaN}').fields["loss"] == "NaN"
