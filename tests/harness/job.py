"""TrainingJobs as tests and the demo see them: applied, watched and broken through the Kubernetes API alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

GROUP, VERSION, PLURAL = "trainyard.dev", "v1alpha1", "trainingjobs"
Object = dict[str, Any]


class Timeout(AssertionError):
    """Something did not come true in time; the message says what was seen last."""


class Api:
    """A cluster's API for one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.client = config.new_client_from_config(str(kubeconfig))
        self.core = client.CoreV1Api(self.client)
        self.custom = client.CustomObjectsApi(self.client)

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> str:
        """Make a namespace if it is not there."""
        body = {"metadata": {"name": name, "labels": labels or {}}}
        try:
            self.core.create_namespace(body)
        except ApiException as error:
            if error.status != 409:
                raise
        return name

    def apply(self, manifest: Object) -> Job:
        """Create a TrainingJob from its manifest."""
        namespace, name = manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"]
        self.custom.create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, manifest)
        return Job(self, namespace, name)


class Job:
    """One TrainingJob."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self.api, self.namespace, self.name = api, namespace, name

    def get(self) -> Object | None:
        """The object as it is, or None if there is none."""
        try:
            found: Object = self.api.custom.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, self.name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def status(self) -> Object:
        """The status, {} before there is one."""
        found = self.get()
        return (found or {}).get("status") or {}

    def patch(self, spec: Object) -> None:
        """Merge fields into the spec."""
        self.api.custom.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, self.name, {"spec": spec},
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    def delete(self) -> None:
        """Ask for its deletion."""
        self.api.custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self.name)

    def pods(self) -> list[Object]:
        """Its pods, raw, by name."""
        answer = self.api.core.list_namespaced_pod(
            self.namespace, label_selector=f"{GROUP}/job={self.name}", _preload_content=False
        )
        found: list[Object] = json.loads(answer.data)["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    def pod(self, index: int) -> Object | None:
        """The newest pod of an index that is not on its way out."""
        matching = [
            pod
            for pod in self.pods()
            if pod["metadata"]["labels"][f"{GROUP}/index"] == str(index)
            and "deletionTimestamp" not in pod["metadata"]
        ]
        return max(matching, key=lambda pod: int(pod["metadata"]["labels"][f"{GROUP}/incarnation"]), default=None)

    def kill_pod(self, name: str) -> None:
        """Delete a pod as if its node had lost power: no grace, no signal that it could answer."""
        self.api.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def logs(self, pod: str) -> str:
        """All that the trainer container of a pod has printed."""
        text: str = self.api.core.read_namespaced_pod_log(pod, self.namespace, container="trainer")
        return text

    def events(self) -> list[Object]:
        """Events about the job, oldest first, as (type, reason, note)."""
        answer = self.api.core.list_namespaced_event(
            self.namespace, field_selector=f"involvedObject.name={self.name},involvedObject.kind=TrainingJob"
        )
        found = [
            {"type": event.type, "reason": event.reason, "message": event.message,
             "time": event.event_time or event.last_timestamp}
            for event in answer.items
        ]
        return sorted(found, key=lambda event: str(event["time"]))

    def wait(self, what: str, holds: Callable[[Object], bool], seconds: float = 120) -> Object:
        """Poll the status until `holds` is true of it, and return it.

        Raises:
            Timeout: it was not within `seconds`; the message carries the last status.
        """
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if holds(status):
                return status
            if time.monotonic() > deadline:
                raise Timeout(f"{self.name}: no {what} within {seconds:.0f} s; {self.describe(status)}")
            time.sleep(0.2)

    def wait_state(self, state: str, seconds: float = 180) -> Object:
        """Wait for `status.state`; an end that was not asked for is an error at once."""
        ends = {"Succeeded", "Failed"}

        def reached(status: Object) -> bool:
            now = status.get("state")
            if now != state and now in ends:
                raise AssertionError(f"{self.name} should become {state}; {self.describe(status)}")
            return bool(now == state)

        return self.wait(f"state {state}", reached, seconds)

    def wait_step(self, step: int, seconds: float = 180) -> Object:
        """Wait until training has finished at least `step` steps."""
        return self.wait(f"step {step}", lambda status: progress(status) >= step, seconds)

    def wait_gone(self, seconds: float = 60) -> None:
        """Wait until neither the job nor any of its pods is left."""
        deadline = time.monotonic() + seconds
        while self.get() is not None or self.pods():
            if time.monotonic() > deadline:
                left = [pod["metadata"]["name"] for pod in self.pods()]
                job = "the job, " if self.get() is not None else ""
                raise Timeout(f"{self.name}: still there after {seconds:.0f} s: {job}pods {left}")
            time.sleep(0.2)

    def condition(self, kind: str, status: Object | None = None) -> Object:
        """A condition by its type, {} if there is none."""
        conditions = (self.status() if status is None else status).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def describe(self, status: Object) -> str:
        """One paragraph for an error message."""
        conditions = "; ".join(
            f"{c['type']}={c['status']} {c['reason']}: {c.get('message', '')}" for c in status.get("conditions", [])
        )
        pods = ", ".join(f"{p['metadata']['name']} {p['status'].get('phase')}" for p in self.pods())
        return f"state {status.get('state')}, progress {status.get('progress')}, {conditions}; pods: {pods or 'none'}"


def progress(status: Object) -> int:
    """Finished steps, -1 while nothing was reported."""
    step: int = (status.get("progress") or {}).get("step", -1)
    return step


def follow(job: Job, seconds: float) -> Iterator[Object]:
    """The status every half second until the job has ended or `seconds` are over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = job.status()
        yield status
        if status.get("state") in ("Succeeded", "Failed"):
            return
        time.sleep(0.5)
    raise Timeout(f"{job.name}: not ended within {seconds:.0f} s; {job.describe(job.status())}")
