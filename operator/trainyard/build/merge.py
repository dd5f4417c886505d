"""Lays the user's template over the built one by the rules of Kubernetes' strategic merge patch."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from trainyard.build.types import InvalidTemplate, Object

# Lists whose entries are merged by a key; all others are replaced as a whole.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
# A volume or a variable has one source: an entry of the same name takes the other's place instead of adding a second.
_REPLACED = frozenset({"volumes", "env"})
# What Trainyard needs cannot be taken away by a null; only what it sets for safety's sake can.
_REMOVABLE = "securityContext"


def merge(base: Mapping[str, Any], overlay: Any, path: str) -> Object:
    """`base` with `overlay` on top: objects field by field, keyed lists entry by entry, everything else replaced. null
    removes in a securityContext, elsewhere it says nothing. Raises InvalidTemplate where the overlay has another type
    of thing than the base."""
    if not isinstance(overlay, Mapping):
        raise InvalidTemplate(path, f"expected an object, found {kind(overlay)}")
    merged: Object = deepcopy(dict(base))
    for name, value in overlay.items():
        here = f"{path}.{name}"
        if value is None:
            if _REMOVABLE in here.split("."):
                merged.pop(name, None)
        elif isinstance(merged.get(name), dict):
            merged[name] = merge(merged[name], value, here)
        elif name in MERGE_KEYS and isinstance(merged.get(name), list):
            merged[name] = _merge_lists(merged[name], value, name, here)
        elif isinstance(merged.get(name), list) and not isinstance(value, list):
            raise InvalidTemplate(here, f"expected a list, found {kind(value)}")
        else:
            merged[name] = deepcopy(value)
    return merged


def _merge_lists(base: list[Object], overlay: Any, name: str, path: str) -> list[Object]:
    """The entries of `base` in their order, changed; then the new ones."""
    key = MERGE_KEYS[name]
    merged = {entry[key]: entry for entry in base}
    for index, entry in enumerate(keyed(overlay, key, path)):
        old = merged.get(entry[key])
        if old is None or name in _REPLACED:
            merged[entry[key]] = deepcopy(dict(entry))
        else:
            merged[entry[key]] = merge(old, entry, f"{path}[{index}]")
    return list(merged.values())


def keyed(value: Any, key: str, path: str) -> list[Mapping[str, Any]]:
    """A list of objects that each have a `key` of their own, checked."""
    if not isinstance(value, list):
        raise InvalidTemplate(path, f"expected a list, found {kind(value)}")
    seen: set[Any] = set()
    for index, entry in enumerate(value):
        here = f"{path}[{index}]"
        if not isinstance(entry, Mapping):
            raise InvalidTemplate(here, f"expected an object, found {kind(entry)}")
        if not isinstance(entry.get(key), (str, int)):
            raise InvalidTemplate(f"{here}.{key}", "must be set")
        if entry[key] in seen:
            raise InvalidTemplate(f"{here}.{key}", f"{entry[key]} is there twice")
        seen.add(entry[key])
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number",
             float: "a number", type(None): "nothing"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
