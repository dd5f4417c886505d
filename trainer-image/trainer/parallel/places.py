"""Where the experts of a mixture are: the place of each in the stacked parameters of its layer, whose parts the ranks
have. At first every expert is at the place of its number; from then on those that are too busy together may part.

A place belongs to the tensors: checkpoints and copies in memory carry the places, and whatever layout they are loaded
into finds its experts by them."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Sequence
from itertools import chain

Places = list[list[int]]  # by layer and expert

MOST = 1 << 14  # experts of all layers together whose places fit the counters of a copy in memory


def first(layers: int, experts: int) -> Places:
    """Before anything has moved."""
    return [list(range(experts)) for _ in range(layers)]


def dump(places: Places) -> str:
    """As counters have them: 16 bits each, packed."""
    return base64.b64encode(zlib.compress(array("H", chain(*places)).tobytes())).decode()


def read(text: str, layers: int, experts: int) -> Places:
    """The reverse. Raises ValueError if they are no places of such a model."""
    numbers = array("H")
    numbers.frombytes(zlib.decompress(base64.b64decode(text)))
    found = [list(numbers[start: start + experts]) for start in range(0, len(numbers), experts)]
    if len(found) != layers or any(sorted(layer) != list(range(experts)) for layer in found):
        raise ValueError(f"places of {layers} x {experts} experts expected, found {len(found)} layers with others")
    return found


def plan(tokens: Sequence[float], places: Sequence[int], ranks: int, above: float, gain: float = 0.01) -> list[int]:
    """New places of one layer's experts, such that no rank gets more than `above` times the mean of `tokens`, or as
    near to that as exchanges of two experts lead. Every rank keeps as many as it has.

    Again and again the busiest rank changes one of its experts for one of another rank, the pair that leaves the
    busier of the two least busy, as long as that is `gain` of the mean at least. `tokens`: by expert, of some steps."""
    found = list(places)
    each = len(found) // ranks
    mean = sum(tokens) / ranks
    while True:
        busy = [0.0] * ranks
        for expert, place in enumerate(found):
            busy[place // each] += tokens[expert]
        hot = max(range(ranks), key=lambda rank: (busy[rank], -rank))
        if busy[hot] <= above * mean:
            return found
        pairs = ((mine, other) for mine, place in enumerate(found) if place // each == hot
                 for other, elsewhere in enumerate(found) if elsewhere // each != hot and tokens[other] < tokens[mine])
        choices = ((_after(tokens, busy, hot, found[other] // each, mine, other), mine, other) for mine, other in pairs)
        best, mine, other = min(choices, default=(busy[hot], 0, 0))
        if best > busy[hot] - gain * mean:
            return found
        found[mine], found[other] = found[other], found[mine]


def _after(tokens: Sequence[float], busy: Sequence[float], hot: int, cold: int, mine: int, other: int) -> float:
    """Tokens of the busier of two ranks once they have changed these experts."""
    less = tokens[mine] - tokens[other]
    return max(busy[hot] - less, busy[cold] + less)
