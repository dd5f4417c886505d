"""The limit of watched files is noticed before a cluster is made, not when its nodes do not become Ready."""

from __future__ import annotations

import pytest
from cluster.builtin import watches
from cluster.errors import ClusterError


def test_too_few_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_left", lambda most: most - 1)  # not by taking all: others need them
    limit = int(watches.LIMIT.read_text())
    with pytest.raises(ClusterError, match=f"needs 27 .* sysctl fs.inotify.max_user_instances={4 * limit}$"):
        watches.require_watches(2)


def test_counting_leaves_nothing_behind() -> None:
    assert [watches._left(5) for _ in range(300)] == [5] * 300
