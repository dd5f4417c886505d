"""Why there is no layout: what was expected, what was found, what would do."""

from __future__ import annotations

from collections.abc import Iterable


class InvalidLayout(ValueError):
    """A field of the manifest that no layout can be made of. `field` is its path, such as train.parallel.tensor."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class LayoutDoesNotFit(ValueError):
    """Layouts are legal, but none fits into the devices' memory; the message names the nearest that would."""


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def nearest(value: int, legal: Iterable[int]) -> str:
    """The legal values next to `value`, below and above, for a message: "4 and 8"."""
    known = sorted(set(legal))
    below = [n for n in known if n < value][-1:]
    above = [n for n in known if n > value][:1]
    words = [str(n) for n in below + above]
    return " and ".join(words) or "none"
