"""Manifests for the contract tests: a complete good one, and how to make others from it."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]
DELETE: Any = object()  # given as a value: the field is taken out


def changed(manifest: Object, changes: dict[str, Any]) -> Object:
    """A copy with fields set by their paths, such as {"spec.train.data.sources[0].path": "/x"}."""
    made = copy.deepcopy(manifest)
    for path, value in changes.items():
        parts = path.replace("[", ".").replace("]", "").split(".")
        *way, last = [int(part) if part.isdigit() else part for part in parts]
        node: Any = made
        for part in way:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        if value is DELETE:
            del node[last]
        elif isinstance(last, int) and last == len(node):
            node.append(value)
        else:
            node[last] = value
    return made


def job(name: str = "job", **changes: Any) -> Object:
    """A TrainingJob of the shipped trainer that uses most fields."""
    return changed({
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name},
        "spec": {
            "numNodes": 4, "numProcPerNode": "auto", "minNodes": 2,
            "devices": {"resource": "huawei.com/Ascend910", "perNode": 8},
            "train": {
                "model": {"family": "llama2", "size": "7b", "config": {"rope_theta": 500000.0}},
                "data": {"sources": [{"path": "/data/a.jsonl", "field": "content", "weight": 2.5}],
                         "tokenizer": "/data/tokenizer.model", "sequenceLength": 2048},
                "parallel": {"shard": 32}, "steps": 1000, "batchSize": 64, "microBatchSize": 2,
                "optimizer": {"learningRate": 3e-4, "minLearningRate": 1e-5, "warmupSteps": 100},
                "evaluate": {"every": 100, "data": [{"path": "/data/held-out.jsonl"}]},
            },
            "template": {"spec": {"containers": [{"name": "trainer", "image": "trainer:1"}], "tolerations": [
                {"key": "npu", "operator": "Exists"}]}},
            "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "shared"}}, "every": 50, "keep": 2},
            "failurePolicy": {"maxRestarts": 5, "hangSeconds": 600,
                              "rules": [{"onExitCodes": [1, -9], "action": "RestartNode"}]},
        },
    }, {f"spec.{path.replace('__', '.')}": value for path, value in changes.items()})


def command_job(name: str = "job", **changes: Any) -> Object:
    """The smallest TrainingJob."""
    return changed({
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name},
        "spec": {"numNodes": 2, "command": ["python3", "train.py"]},
    }, {f"spec.{path.replace('__', '.')}": value for path, value in changes.items()})


def world(name: str = "job") -> Object:
    """A World of generation 1."""
    return {"apiVersion": "trainyard.dev/v1alpha1", "kind": "World", "metadata": {"name": name}, "spec": {
        "job": "8a0cbbf1-3f49-4a0f-9d3f-0d8c5cc8d8f1", "generation": 1, "phase": "Run", "size": 2,
        "token": "0123456789abcdef0123456789abcdef", "incarnations": {"1": 2}}}


def report(pod: str, uid: str, index: int = 0, incarnation: int = 1) -> Object:
    """The Report that a supervisor in that pod writes."""
    return {"apiVersion": "trainyard.dev/v1alpha1", "kind": "Report", "metadata": {
        "name": pod, "labels": {"trainyard.dev/job": pod.rsplit("-", 2)[0]},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}]}, "spec": {
        "job": "8a0cbbf1-3f49-4a0f-9d3f-0d8c5cc8d8f1", "podUid": uid, "index": index, "incarnation": incarnation,
        "generation": 1, "sequence": 1, "kind": "RankFailed", "failure": {
            "root": True, "rank": 0, "exitCode": -9, "reason": "SIGKILL"}}}
