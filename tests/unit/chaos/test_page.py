"""The table of results, and the list of cases."""

from __future__ import annotations

import pytest
from chaos import page
from chaos.cases import CASES
from chaos.driver import select
from chaos.results import Recovered, Result, quantile


def result(key: str, seconds: list[float], **more: object) -> Result:
    made = Result(key, "SIGKILL of a rank", **more)  # type: ignore[arg-type]
    made.recovered = [Recovered(each, 0, 1, {"detect": 100, "replace": 900, "restore": 200}) for each in seconds]
    made.losses = "equal"
    return made


def test_a_row() -> None:
    made = result("1", [1.0, 2.0, 1.5], aim=1.0)
    made.beside = [Recovered(6.0, 9)]
    assert page.row(made) == (
        "| 1 | SIGKILL of a rank | 1.50 / 2.00 / 2.00 (3) | detect 0.10, replace 0.90, restore 0.20 | 0 / 1 | equal "
        "| 6.0, 9 lost: 4.0 x | 1.0: missed, replace 0.90, restore 0.20 |")
    assert page.row(result("1", [0.5], aim=1.0)).endswith("| 1.0: met |")
    made.failed = ["3 finished steps were lost, expected at most 0\nmore"]
    assert page.row(made).endswith("| FAILED: 3 finished steps were lost, expected at most 0 |")


def test_rows_of_cases_that_were_not_run_stay() -> None:
    old = page.table([result("1", [1.0]), result("3", [1.0]), result("3b", [4.0]), result("11", [2.0])], 0.5)
    new = page.table([result("3", [7.0]), result("2", [3.0])], 0.5, old)
    keys = [line.split(" | ")[0].strip("| ") for line in new.splitlines() if line.startswith("| ")]
    assert keys == ["#", "---", "1", "2", "3", "3b", "11"]
    assert "7.00 / 7.00" in new
    assert "4.00 / 4.00" in new


@pytest.mark.parametrize(("share", "expected"), [(0.5, 3.0), (0.95, 5.0), (0.2, 1.0)])
def test_quantile(share: float, expected: float) -> None:
    assert quantile([5.0, 1.0, 4.0, 2.0, 3.0], share) == expected


def test_cases_are_chosen_by_number() -> None:
    assert [case.key for case in select("2, 3")] == ["2", "3", "3b"]
    assert [case.key for case in select("3b")] == ["3b"]
    assert select("") == list(CASES)
    with pytest.raises(ValueError, match="no case 99"):
        select("1,99")


def test_keys_are_the_numbers_of_the_suite() -> None:
    keys = [case.key for case in CASES]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys, key=lambda key: (int(key.rstrip("abc")), key))
    assert {case.beyond for case in CASES if case.beyond} <= set(keys)
