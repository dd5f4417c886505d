"""The quickest cases of the chaos suite, once each: `make chaos` does all, five times, and measures."""

from __future__ import annotations

import pytest
from chaos.driver import Driver, select
from harness.installation import Yard

CASES = "1,2"


@pytest.mark.timeout(600)
def test_the_quickest_cases(yard: Yard, namespace: str) -> None:
    yard.needs("disks")
    results = Driver(yard, namespace, settle=4, same=2.0).run(select(CASES), times=1, beside_times=0)
    assert not {result.key: result.failed for result in results if result.failed}
    assert all(len(result.recovered) == 1 and result.losses.startswith("equal") for result in results)
