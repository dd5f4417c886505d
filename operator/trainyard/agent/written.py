"""YAML that people write: what the parser would take without a word, or die of, is refused by a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

_DEEPEST = 32  # lists in lists; libyaml overflows the stack of the process at some ten thousand
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class _Open:
    """A list or a mapping that is not closed yet."""

    mapping: bool
    keys: set[str] = field(default_factory=set)
    key_next: bool = True


def load(text: str, loader: Any) -> Any:
    """What the text says. Raises ValueError (a key that is there twice, too deep a nesting, values that are none) and
    yaml.YAMLError."""
    stack: list[_Open] = []
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            if stack:
                _enter(stack[-1], event)
            if not isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                stack.append(_Open(isinstance(event, yaml.MappingStartEvent)))
                if len(stack) > _DEEPEST:
                    raise ValueError(f"{_line(event)}: nested deeper than {_DEEPEST} levels")
    return yaml.load(text, loader)


def _enter(inside: _Open, event: Any) -> None:
    if inside.mapping and inside.key_next and isinstance(event, yaml.ScalarEvent):
        if event.value in inside.keys:
            raise ValueError(f"{_line(event)}: {event.value[:80]!r} is there twice, and only one of "
                             "the two would count")
        inside.keys.add(event.value)
    inside.key_next = not inside.key_next


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"
