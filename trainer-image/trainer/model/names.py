"""Names in Hugging Face's files. transformers stacks the experts of a layer; the files have each matrix by itself:

    model.layers.0.mlp.gate.weight              block_sparse_moe.gate.weight
    model.layers.0.mlp.experts.gate_up_proj     block_sparse_moe.experts.3.w1.weight (gate) and .w3.weight (up), ...
    model.layers.0.mlp.experts.down_proj        block_sparse_moe.experts.3.w2.weight, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name, and where it is in the parameter: all of it, or some rows at an expert's place."""

    name: str
    shape: tuple[int, ...]
    expert: int | None = None
    first_row: int = 0


def stored(name: str, shape: Sequence[int], places: Sequence[int] | None = None) -> list[Stored]:
    """What a parameter of this name and shape is in files; all of it together. `places`: where in it each expert is, if
    not in order."""
    found = _stored(name, shape)
    if places is None:
        return found
    return [one if one.expert is None else replace(one, expert=places[one.expert]) for one in found]


def _stored(name: str, shape: Sequence[int]) -> list[Stored]:
    if name.endswith(DOWN):
        experts, rows, columns = shape
        prefix = name.removesuffix(DOWN)
        return [Stored(f"{prefix}.block_sparse_moe.experts.{number}.w2.weight", (rows, columns), number)
                for number in range(experts)]
    if name.endswith(GATE_UP):
        experts, rows, columns = shape
        half = (rows // 2, columns)
        prefix = name.removesuffix(GATE_UP)
        return [Stored(f"{prefix}.block_sparse_moe.experts.{number}.{kind}.weight", half, number, first)
                for number in range(experts) for kind, first in (("w1", 0), ("w3", rows // 2))]
    return [Stored(name.replace(".mlp.gate.", ".block_sparse_moe.gate."), tuple(shape))]
