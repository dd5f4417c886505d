"""How many slots a rank gets and who holds copies of them, as far as the pods' memory goes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.copies.keeper import HELD

from trainer.checkpoint.buddies import Buddies


class Unavailable(Exception):
    """There can be no copies in memory here; why."""


@dataclass(frozen=True)
class Room:
    """What is taken. `turns`: slots that take turns; `pins`: one more, for checkpoints; `need`: bytes a pod."""

    turns: int
    pins: bool
    buddies: Buddies
    need: int
    given_up: str = ""  # what else there would be, in words
    alone: bool = False  # no other pod holds anything, for want of memory


def choose(wanted: Buddies, near: Buddies, alone: Buddies | None, size: int, free: int, turns: Sequence[int],
           pins: bool) -> Room:
    """The most that fits `free` bytes of every pod, with slots of `size` bytes: buddies as `wanted`, else `near`, whose
    pods hold evenly much, else (if there is one) none at all. `turns`: how many slots may take turns, the most first
    (Rhythm.turns); two do where nothing is sent. `pins`: a slot for checkpoints would be of use. Raises Unavailable."""
    # Without a slot to pin the rank itself makes a copy while a checkpoint is written, outside of this mount.
    each = [(count, pins) for count in turns] + ([(turns[-1], False)] if pins else [])
    choices = [(count, pin, buddies) for buddies in (wanted, near) for count, pin in each]
    if alone is not None:
        choices += [(2, pins, alone)] + ([(2, False, alone)] if pins else [])
    first = _need(*choices[0], size)
    for count, pin, buddies in choices:
        need = _need(count, pin, buddies, size)
        if need <= free:
            left_out = buddies is alone and wanted.most_kept(0, HELD) > 0
            gone = [(left_out, "no other pod holds any, the state of a lost pod is lost with it"),
                    (buddies is near, "those for other pods may lie on the same node"),
                    (count < choices[0][0] and not left_out, "own ones are only taken when they are also sent"),
                    (pin < pins, "checkpoints are written by the ranks themselves")]
            words = "; ".join(text for is_so, text in gone if is_so)
            why = f"copies in memory would need {first >> 20} MiB a pod, {free >> 20} MiB can be used: "
            return Room(count, pin, buddies, need, why + words if words else "", left_out)
    count, pin, buddies = choices[-1]
    raise Unavailable(f"{buddies.most_kept(count, HELD)} slots of {size >> 20} MiB, those for other pods included, "
                      f"need {_need(count, False, buddies, size) >> 20} MiB a pod, {free >> 20} MiB can be used; "
                      "give the pods more memory, or set checkpoint.memory.every to 0")


def _need(turns: int, pin: bool, buddies: Buddies, size: int) -> int:
    return buddies.most_kept(turns + pin, HELD) * size
