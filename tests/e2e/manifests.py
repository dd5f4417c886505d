"""Manifests of the end-to-end tests' jobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness.installation import Yard
from harness.job import Job, Timeout

Object = dict[str, Any]
VOLUME = {"persistentVolumeClaim": {"claimName": "shared"}}
SCRIPT = Path(__file__).with_name("steps.py").read_text()
CHAIN = Path(__file__).with_name("chain.py").read_text()


def _job(name: str, namespace: str, spec: Object) -> Object:
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def counting(name: str, namespace: str, image: str, *, nodes: int = 2, procs: int = 1, steps: int = 20,
             step_seconds: float = 0.2, script: str = SCRIPT, gate: bool = False, **spec: Any) -> Object:  # fmt: skip
    """A job that runs steps.py or another script of that kind, with its state on the shared volume. `gate`: containers
    do not start before there is a file `go` beside that state; devices are given to the pod all the same."""
    container = {
        "name": "trainer",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "STEPS", "value": str(steps)}, {"name": "STEP_SECONDS", "value": str(step_seconds)}],
    }
    return _job(name, namespace, {
        "numNodes": nodes,
        "numProcPerNode": procs,
        "command": ["python3", "-c", script],
        "checkpoint": {"volume": VOLUME, "subPath": name},
        "template": {"spec": {"containers": [container], **(_gate(image, name) if gate else {})}},
        **spec,
    })  # fmt: skip


def _gate(image: str, name: str) -> Object:
    wait = "import os, time\nwhile not os.path.exists('/gate/go'): time.sleep(0.1)\n"
    return {"volumes": [{"name": "gate", **VOLUME}], "initContainers": [{
        "name": "gate", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", wait],
        "volumeMounts": [{"name": "gate", "mountPath": "/gate", "subPath": name}]}]}  # fmt: skip


def training(name: str, namespace: str, *, nodes: int = 2, procs: int = 1, steps: int = 30, **spec: Any) -> Object:
    """A job of the shipped trainer: a very small LLaMA2 on real text."""
    train = {
        "model": {
            "size": "tiny",
            "config": {
                "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "vocab_size": 32000, "max_position_embeddings": 128,
            },
        },
        "data": {"sources": [{"path": "/data/text.txt"}], "tokenizer": "/data/tokenizer.model", "sequenceLength": 64},
        "steps": steps,
        "batchSize": 4,
        "optimizer": {"learningRate": 0.003},
    }  # fmt: skip
    mount = {"name": "shared", "mountPath": "/data", "subPath": "data", "readOnly": True}
    return _job(name, namespace, {
        "numNodes": nodes,
        "numProcPerNode": procs,
        "train": train,
        "checkpoint": {"volume": VOLUME, "subPath": name, "every": 5},
        "template": {"spec": {"containers": [{"name": "trainer", "volumeMounts": [mount]}],
                              "volumes": [{"name": "shared", **VOLUME}]}},
        **spec,
    })  # fmt: skip


def leave(folder: Path, code: int) -> None:
    """Let rank 1 of a `counting` job leave with this code, once. It looks at any time: the file is there whole or not
    at all."""
    fresh = folder / "fail"
    fresh.write_text(str(code))
    fresh.chmod(0o666)
    fresh.replace(folder / "fail-1")


def check_lost_pods(status: Object, number: int) -> None:
    """So many pods were lost in turn, and that counts against nobody. If the word of a supervisor that it was told to
    stop arrives before that of its pod's end, it is a move."""
    assert status["restarts"]["counted"] == 0
    assert len(status["recoveries"]) == number
    assert {each["cause"] for each in status["recoveries"]} <= {"PodLost", "Moved"}


def wait_kept(yard: Yard, job: Job, step: int, seconds: float = 120, rank: int = 0) -> int:
    """Wait until a rank of a `counting` job has kept at least `step`, which its file on the volume tells at once; the
    job's status follows within 5 s only. Returns the step."""
    path = yard.volume(job.namespace) / job.name / f"step-{rank}"
    deadline = time.monotonic() + seconds
    while True:
        kept = int(path.read_text() or 0) if path.exists() else 0
        if kept >= step:
            return kept
        if time.monotonic() > deadline:
            raise Timeout(f"{job.name}: no step {step} within {seconds:.0f} s, rank {rank} kept {kept}; "
                          f"{job.describe(job.status())}")
        time.sleep(0.05)
