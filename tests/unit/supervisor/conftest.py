"""Supervisors that a test started end with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import SupervisedPod


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def start(tmp_path: Path, api: FakeApi) -> Iterator[Callable[..., SupervisedPod]]:
    """Start a supervisor over a program; see SupervisedPod."""
    started: list[SupervisedPod] = []

    def start(program: list[str], **options: Any) -> SupervisedPod:
        options.setdefault("command", ["/usr/bin/python3", "-m", "supervisor"])
        pod = SupervisedPod(tmp_path, api, program, **options)
        started.append(pod)
        return pod

    yield start
    for pod in started:
        pod.stop()
