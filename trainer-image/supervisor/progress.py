"""The line of JSON that rank 0 keeps in its progress file. Pure."""

from __future__ import annotations

import datetime
import json
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

STEP = 2**53
COUNT = 2**31 - 1
WARNINGS = 5
LAYOUTS = 8


class Progress(NamedTuple):
    """A checked line: fields as Report.progress has them, and warnings as (reason, message)."""

    fields: Dict[str, Any]
    warnings: Tuple[Tuple[str, str], ...]


def _whole(most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= most:
            raise ValueError(f"expected a number from 0 to {most}, found {value!r}")
        return int(number)

    return check


def _decimal(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"expected a number, found {value!r}")
    float(value)
    return str(value)[:40]


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r}")
    return value[:32]


def _text(value: Any) -> str:
    return str(value)[:256]


def _time(value: Any) -> str:
    """As the API wants it; without a zone it is taken for UTC."""
    moment = datetime.datetime.fromisoformat(_words(value).replace("Z", "+00:00"))  # Python 3.9 knows no Z
    utc = datetime.timezone.utc
    moment = moment.astimezone(utc) if moment.tzinfo is not None else moment.replace(tzinfo=utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


PROTECTIONS = ("Node", "Pod", "Unprotected")


def _protection(value: Any) -> str:
    if value not in PROTECTIONS:
        raise ValueError(f"expected one of {', '.join(PROTECTIONS)}, found {value!r}")
    return str(value)


def _measured(value: Any) -> List[Dict[str, str]]:
    """Layouts that were measured: name, words, seconds a step, or why it was left out."""
    if not isinstance(value, list) or not all(isinstance(row, dict) and row.get("name") for row in value):
        raise ValueError(f"expected a list of objects with a name, found {value!r}")
    kinds = (("name", _words), ("layout", _text), ("secondsPerStep", _decimal), ("problem", _text))
    return [{key: check(row[key]) for key, check in kinds if row.get(key) is not None} for row in value[:LAYOUTS]]


FIELDS: Dict[str, Callable[[Any], Any]] = {
    "step": _whole(STEP), "steps": _whole(STEP), "durableStep": _whole(STEP), "memoryStep": _whole(STEP),
    "resumedStep": _whole(STEP), "finishedStep": _whole(STEP), "memorySkipped": _whole(COUNT),
    "protection": _protection,
    "tokensPerSecond": _whole(COUNT),
    "data": _whole(COUNT), "shard": _whole(COUNT), "tensor": _whole(COUNT), "pipeline": _whole(COUNT),
    "context": _whole(COUNT), "expert": _whole(COUNT), "loss": _decimal, "evaluationLoss": _decimal,
    "secondsPerStep": _decimal, "expertImbalance": _decimal,
    "activity": _words, "connectedAt": _time, "restoredAt": _time,
    "tuned": _words, "measured": _measured,
}


def parse(line: bytes) -> Progress:
    """Read a progress line; ValueError says what is wrong. Decimals keep the digits that were written."""
    try:
        data = json.loads(line.decode("utf-8"), parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one line of JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, found {type(data).__name__}")
    if data.get("step") is None:
        raise ValueError("the field `step` is missing")
    fields = {}
    for name, check in FIELDS.items():
        if data.get(name) is not None:
            try:
                fields[name] = check(data[name])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"field `{name}`: {error}") from None
    return Progress(fields, _warnings(data.get("warnings")))


def _warnings(value: Any) -> Tuple[Tuple[str, str], ...]:
    found: List[Tuple[str, str]] = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict) and item.get("reason"):
            found.append((str(item["reason"])[:64], str(item.get("message") or "")[:1024]))
    return tuple(found[-WARNINGS:])
