"""Statuses as stored: another version of the operator may have written them, such as a newer one before a rollback."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from trainyard.api.job import ConditionType, TrainingJobStatus

Place = tuple[str | int, ...]


def read_status(raw: Mapping[str, Any]) -> tuple[TrainingJobStatus, tuple[str, ...]]:
    """The status without what this version does not understand, and the paths of what was left out, sorted. Never
    raises: a job whose status cannot be read would not be looked after at all. The next write drops the rest."""
    try:
        return TrainingJobStatus.model_validate(raw), ()
    except ValidationError:
        known = dict(copy.deepcopy(raw))
    out = _without(known, _unknown_conditions(known))  # first: they may be too many
    try:
        return TrainingJobStatus.model_validate(known), tuple(sorted(out))
    except ValidationError as error:
        out |= _without(known, {_part(each["loc"]) for each in error.errors(include_url=False)})
    try:
        return TrainingJobStatus.model_validate(known), tuple(sorted(out))
    except ValidationError as error:  # the part alone does not help: the whole field goes, and each has a default
        out |= _without(known, {each["loc"][:1] for each in error.errors(include_url=False)})
    return TrainingJobStatus.model_validate(known), tuple(sorted(out))


def _unknown_conditions(raw: Mapping[str, Any]) -> set[Place]:
    found = raw.get("conditions")
    return {("conditions", number) for number, each in enumerate(found if isinstance(found, list) else ())
            if not isinstance(each, Mapping) or each.get("type") not in get_args(ConditionType)}


def _part(place: Place) -> Place:
    """What is left out for an error here: a whole entry of a list, else the field."""
    return next((place[:end + 1] for end, key in enumerate(place) if isinstance(key, int)), place)


def _without(raw: dict[str, Any], places: set[Place]) -> set[str]:
    """Remove these places; the later entries of a list first, so that the numbers of the others stay true. Returns what
    to call them."""
    names = set()
    for place in sorted(places, key=lambda place: [(isinstance(key, int), key) for key in place], reverse=True):
        inside: Any = raw
        for key in place[:-1]:
            inside = inside[key]
        last: Any = place[-1]
        if isinstance(inside, list) or last in inside:
            gone = inside[last]
            kind = gone.get("type") if isinstance(gone, Mapping) else None
            names.add(".".join(map(str, (*place[:-1], kind or last))))
            del inside[last]
    return names
