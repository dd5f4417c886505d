"""When pods were made, bound and running, from a watch of the API server's."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from harness.job import Api, Object


class Pods:
    """Pods of a namespace that carry a label, by name: seconds (monotonic) since when each was created, bound, Running.
    Follows them until closed."""

    def __init__(self, api: Api, namespace: str, selector: str) -> None:
        self.created: dict[str, float] = {}
        self.bound: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self._changed = threading.Condition()
        self._broken: BaseException | None = None
        self._api, self._path = api, f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
        self._version = json.loads(_get(api, f"{self._path}&limit=1").data)["metadata"]["resourceVersion"]
        self._closed = False
        self._stream = self._open()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _open(self) -> Any:
        return _get(self._api, f"{self._path}&watch=1&resourceVersion={self._version}")

    def _follow(self) -> None:
        try:
            while not self._closed:  # the API server ends the watch of a client that is slow; it goes on where it was
                for event in _events(self._stream):
                    with self._changed:
                        self._note(event["type"], event["object"], time.monotonic())
                        self._version = event["object"]["metadata"]["resourceVersion"]
                        self._changed.notify_all()
                if not self._closed:
                    self._stream = self._open()
        except Exception as error:  # closed, or broken: whoever waits is told
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _note(self, kind: str, pod: Object, now: float) -> None:
        name = pod["metadata"]["name"]
        self.created.setdefault(name, now)
        if kind == "DELETED":
            self.gone[name] = now
        if pod["spec"].get("nodeName"):
            self.bound.setdefault(name, now)
        if pod["status"].get("phase") == "Running":
            self.running.setdefault(name, now)

    def wait(self, what: str, done: Callable[[], bool], seconds: float) -> None:
        """Until `done`, looked at after every event. AssertionError with the counts after `seconds`."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not done():
                if self._broken is not None:
                    raise AssertionError(f"the watch of pods broke: {self._broken!r}")
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(
                        f"not within {seconds:.0f} s: {what}; {len(self.created)} created, {len(self.bound)} bound, "
                        f"{len(self.running)} running, {len(self.gone)} gone")

    def close(self) -> None:
        """End the watch."""
        self._closed = True
        with contextlib.suppress(RuntimeError):  # it has ended just now
            self._stream.shutdown()


def _get(api: Api, path: str) -> Any:
    answer = api.client.call_api("GET", api.client.configuration.host + path,
                                 header_params={"Accept": "application/json", **api.client.default_headers})
    return answer.response


def _events(stream: Any) -> Iterator[Object]:
    rest = b""
    for chunk in stream.stream(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, filter(None, lines))
