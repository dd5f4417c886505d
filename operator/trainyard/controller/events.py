"""Kubernetes Events about jobs, nodes and devices: what a user wants to see once. Sending one may fail; nothing depends
on it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from trainyard.api import API_VERSION
from trainyard.kube.client import MERGE_PATCH, ApiError, Client, NotLeading, Object
from trainyard.kube.paths import path_of
from trainyard.kube.views import JobView

log = logging.getLogger(__name__)

_QUIET_SECONDS = 60.0  # the same event again within this time is not worth a request
_REMEMBERED = 2000


@dataclass(frozen=True, slots=True)
class Subject:
    """What an Event is about; what is in no namespace has its events in `default`."""

    api_version: str
    kind: str
    name: str
    uid: str
    namespace: str = "default"

    @property
    def namespaced(self) -> bool:
        """Whether it is in a namespace."""
        return self.kind not in ("Node", "NodeDevices")


def subject(job: JobView) -> Subject:
    """A TrainingJob."""
    return Subject(API_VERSION, "TrainingJob", job.name, job.uid, job.namespace)


class Events:
    """The same reason and message about the same object is one Event, whose count goes up."""

    def __init__(self, client: Client, identity: str) -> None:
        self._client = client
        self._identity = identity
        self._sent: OrderedDict[str, tuple[float, int]] = OrderedDict()  # by digest: when last, how often

    async def send(self, about: Subject, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Never raises ApiError."""
        message = message[:1024]
        digest = hashlib.sha256(f"{about.uid}/{kind}/{reason}/{message}".encode()).hexdigest()[:16]
        last, count = self._sent.get(digest, (float("-inf"), 0))
        if time.monotonic() - last < _QUIET_SECONDS:
            return
        self._sent[digest] = (time.monotonic(), count + 1)
        self._sent.move_to_end(digest)
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
        event = self._event(about, f"{about.name}.{digest}", kind, reason, message)
        path, name = path_of(event)
        try:
            try:
                await self._client.write("POST", path, event, seconds=5)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                more = {"count": max(2, count + 1), "lastTimestamp": event["lastTimestamp"]}
                await self._client.write("PATCH", f"{path}/{name}", more, content_type=MERGE_PATCH, seconds=5)
        except (ApiError, NotLeading) as error:
            log.debug("event %s was not sent: %s", reason, error)

    def _event(self, about: Subject, name: str, kind: str, reason: str, message: str) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        involved = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name, "uid": about.uid}
        return {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": about.namespace},
            "involvedObject": involved | ({"namespace": about.namespace} if about.namespaced else {}),
            "type": kind, "reason": reason, "message": message, "count": 1, "firstTimestamp": now,
            "lastTimestamp": now, "source": {"component": "trainyard"},
            "reportingComponent": "trainyard.dev/operator", "reportingInstance": self._identity[:128],
        }
