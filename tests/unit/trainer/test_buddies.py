"""Who holds whose copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer.checkpoint.buddies import Buddies


@pytest.mark.parametrize(("case", "pods", "hosts", "copies", "answer"), [
    ("two pods", "0022", "aabb", 1, [[2], [3], [0], [1]]),
    ("one pod has none", "00", "aa", 1, [[], []]),
    ("the next pod", "012", "abc", 1, [[1], [2], [0]]),
    ("two copies", "012", "abc", 2, [[1, 2], [2, 0], [0, 1]]),
    ("no more than there are pods", "012", "abc", 5, [[1, 2], [2, 0], [0, 1]]),
    ("not the next pod, which is on the same node", "0123", "aabb", 1, [[2], [3], [0], [1]]),
    ("wherever ranks are", "0123", "abab", 1, [[1], [0], [3], [2]]),
    ("two copies on two nodes, if there are", "0123", "aabc", 2, [[2, 3], [3, 2], [0, 3], [1, 2]]),
    ("else on one", "0123", "aabb", 2, [[2, 3], [3, 2], [0, 1], [1, 0]]),
    ("all on one node", "012", "aaa", 1, [[1], [2], [0]]),
    ("most on one node: the others hold more", "0123", "aaab", 1, [[3], [3], [3], [2]]),
])  # fmt: skip
def test_buddies(case: str, pods: str, hosts: str, copies: int, answer: list[list[int]]) -> None:
    found = Buddies([*map(int, pods)], hosts, copies)
    assert [found.of(rank) for rank in range(len(pods))] == answer, case


gangs = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), min_size=1, max_size=8)


def ranks(gang: Sequence[tuple[str, int]]) -> tuple[list[int], list[str]]:
    pods, hosts = list[int](), list[str]()
    for host, size in gang:
        pods += [len(pods)] * size
        hosts += [host] * size
    return pods, hosts


@given(gangs, st.integers(0, 3), st.booleans())
def test_other_pods_on_other_nodes_and_even(gang: list[tuple[str, int]], copies: int, apart: bool) -> None:
    pods, hosts = ranks(gang)
    made = Buddies(pods, hosts, copies, apart)
    nodes = Counter(host for host, _ in gang)
    kept = Counter(pods)
    for rank, pod in enumerate(pods):
        found = made.of(rank)
        assert len({pods[other] for other in found} - {pod}) == len(found) == min(copies, len(gang) - 1)
        other_nodes = {hosts[other] for other in found} - {hosts[rank]}
        if apart:
            assert len(other_nodes) == min(copies, len(nodes) - 1), "a node's loss takes as few copies as possible"
        kept.update(pods[other] for other in found)
    even = len({size for _, size in gang}) == 1
    if even and copies == 1 and len(gang) > 1 and (not apart or max(nodes.values()) * 2 <= len(gang)):
        assert set(kept.values()) == {2 * gang[0][1]}
    if apart and copies:
        assert made.outlive_node == (len(nodes) > 1 or len(gang) == 1)
    if even:
        assert made.most_kept(1, 1) == max(kept.values())
