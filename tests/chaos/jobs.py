"""The job that is broken: a LLaMA2 of a few million parameters by the shipped trainer, with copies in memory."""

from __future__ import annotations

from typing import Any

from harness.job import Object

EVERY = 10  # steps between two durable checkpoints, torchrun's too
VOLUME = {"persistentVolumeClaim": {"claimName": "shared"}}
DATA = {"name": "shared", "mountPath": "/data", "subPath": "data", "readOnly": True}
CHECKPOINT = {"volume": VOLUME, "every": EVERY, "memory": {"every": 1, "copyEvery": 1, "copies": 1}}
# One thread a rank: the sums of a run are those of every other run.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def train(steps: int, nodes: int) -> Object:
    """spec.train. The learning rate does not depend on `steps`, so that a longer run begins like a shorter one."""
    return {
        "model": {
            "size": "tiny",
            "config": {
                "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4,
                "num_key_value_heads": 2, "vocab_size": 32000, "max_position_embeddings": 128,
            },
        },
        "data": {"sources": [{"path": "/data/text.txt"}], "tokenizer": "/data/tokenizer.model", "sequenceLength": 32,
                 "cache": "/checkpoint/tokens"},
        "steps": steps,
        "batchSize": 6,
        "export": False,
        "precision": "fp32",
        "parallel": {"shard": nodes},
        "optimizer": {"learningRate": 0.001, "minLearningRate": 0.001, "warmupSteps": 10},
    }  # fmt: skip


def manifest(name: str, namespace: str, steps: int, nodes: int, environment: dict[str, str] | None = None,
             **spec: Any) -> Object:
    """A TrainingJob with one rank a pod."""
    container = {
        "name": "trainer",
        "env": [{"name": key, "value": value} for key, value in {**ENVIRONMENT, **(environment or {})}.items()],
        "volumeMounts": [DATA],
        "resources": {"requests": {"memory": "2Gi"}},  # without any the kernel sees no difference between its processes
    }
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "numNodes": nodes,
            "numProcPerNode": 1,
            "train": train(steps, nodes),
            "template": {"spec": {"containers": [container], "volumes": [{"name": "shared", **VOLUME}]}},
            **spec,
            "checkpoint": {**spec.get("checkpoint", CHECKPOINT), "subPath": name},
            "failurePolicy": {"maxRestarts": 1000, **spec.get("failurePolicy", {})},
        },
    }
