"""What is left of a job after a case that failed, kept in a file before the job is deleted."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import yaml
from harness.installation import SYSTEM, Yard
from harness.job import GROUP, VERSION, Job
from kubernetes.client.exceptions import ApiException

FOLDER = Path("out/chaos")
OPERATOR_LINES = 2000


def keep(yard: Yard, job: Job, journal: str) -> Path:
    """Write status, World, Reports, Events and logs of a job, and the operators' newest lines; returns the file."""
    made = [("journal", journal), ("job", _yaml(job.get()))]
    for plural in ("worlds", "reports"):
        with contextlib.suppress(ApiException):
            found = yard.api.custom.list_namespaced_custom_object(GROUP, VERSION, job.namespace, plural)
            made.append((plural, _yaml(found["items"])))
    made.append(("events", "\n".join(f"{each['time']} {each['reason']}: {each['message']}" for each in job.events())))
    for pod in job.pods():
        name = pod["metadata"]["name"]
        made.append((f"pod {name}", _yaml(pod["status"])))
        with contextlib.suppress(ApiException):
            made.append((f"log of {name}", job.logs(name)))
    for pod in yard.operator_pods():
        name = pod["metadata"]["name"]
        with contextlib.suppress(ApiException):
            made.append((f"log of {name}", yard.api.core.read_namespaced_pod_log(
                name, SYSTEM, tail_lines=OPERATOR_LINES)))  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{job.name}.txt"
    path.write_text("".join(f"==== {title}\n{text}\n\n" for title, text in made))
    return path


def _yaml(manifest: object) -> str:
    return yaml.safe_dump(json.loads(json.dumps(manifest, default=str)), sort_keys=False)
