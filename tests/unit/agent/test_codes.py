"""What fault codes say by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainyard.agent.codes import meaning
from trainyard.agent.faults import shipped
from trainyard.agent.types import Fault


@pytest.mark.parametrize(("code", "words"), [
    ("80E01801", "HBM: memory, multi-bit ECC error"),
    ("80E18402", "HBM: record of memory errors, too many multi-bit ECC errors"),
    ("80C98009", "AI core: bus error"),
    ("81078603", "network port: link is down"),
    ("81978006", "dispatch, PCIe: single-bit ECC error, corrected"),
    ("80E00209", "HBM: temperature, above its upper limit, major"),
    ("8C0C4E00", "sklogd: heartbeat, lost"),
    ("4C4BA00C", "driver: failed for good (seen by the host)"),
    ("817F8004", "unit BF: configuration error"),  # nobody says what it is called
    ("80E1FE0A", "HBM: sensor FF, event A"),
    ("A8193234", "LPM: exception 13234, critical (black box code)"),
    ("B4060006", "task scheduler: exception 00006, minor (black box code)"),
    ("A0FE0001", "module 7F: exception 00001 (black box code)"),
    ("00E01801", ""), ("C0E01801", ""), ("80e01801", ""), ("80E0180", ""), ("DeviceLost", ""), ("", ""),
])
def test_what_a_code_says(code: str, words: str) -> None:
    assert meaning(code) == words


def test_every_listed_code_has_a_text_and_some_say_more_than_the_code() -> None:
    table = shipped()
    for code, entry in table.codes.items():
        assert table.entry(Fault(code)).text, code
        assert entry.text == "" or entry.text != meaning(code), f"{code}: the text says nothing that the code does not"


def test_unlisted_codes_say_what_they_can() -> None:
    assert shipped().entry(Fault("80E1800B")).text == "HBM: heartbeat lost"
    assert shipped().entry(Fault("FFFF0000")).text == "a code that the fault table does not list"


@given(st.integers(0, 2**32 - 1))
def test_any_number_is_read_without_an_error(number: int) -> None:
    assert len(meaning(f"{number:08X}")) < 128
