"""How Ascend's nodes are built and labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Model = Literal["910A", "910B-8", "910B-16", "A3", "Other"]

_MODELS: Mapping[str, Model] = {
    "module": "910A", "module-910b-8": "910B-8", "module-910b-16": "910B-16", "module-a3-16": "A3",
    "module-a3-16-super-pod": "A3",
}
_RING = {"910A": 4, "910B-16": 8}
_TOPOLOGY = "huawei.com/topotree."


def labelled_model(labels: Mapping[str, str]) -> Model | None:
    """The model that the node's label accelerator-type names; None: it names none that we know."""
    return _MODELS.get(labels.get("accelerator-type", ""))


def ring(model: Model, physical: int) -> int:
    """The ring of a device."""
    return physical // _RING[model] if model in _RING else 0


def module(model: Model, physical: int) -> int:
    """The module of a device: two dies of an A3 share one."""
    return physical // 2 if model == "A3" else physical


def labelled(labels: Mapping[str, str], what: Literal["superpodid", "rackid", "serverid"]) -> str:
    """Where the node stands, by its labels; empty: they do not tell."""
    return labels.get(_TOPOLOGY + what, "")
