"""Durable checkpoints that copiers write from pinned slots: training does not stand still for them, no second copy is
made, and ranks that die after their slots were filled take nothing of the checkpoint with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from supervisor.copies.writer import HANDED_IN, LOST, UNKNOWN, WRITING
from torch.distributed.checkpoint import CheckpointException

from trainer.checkpoint import folder as folders
from trainer.checkpoint import form
from trainer.checkpoint.copier import ANSWERS, Copier
from trainer.checkpoint.folder import Marker
from trainer.checkpoint.memory import Memory, pieces
from trainer.checkpoint.saver import NotWritten, State, reason
from trainer.errors import describe

DROPPED_WITHIN = 5.0  # s that are waited for the copier's word
ORDERS = 3  # of one rank's files, to copiers that are replaced meanwhile


class Pinned:
    """Saves from this gang's slots. What it does in the saver's thread, it does at every rank at the same time."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._gang = memory.gang
        self._copier = Copier(memory.folder)
        self._form = memory.folder / "own" / memory.layout / f"{self._gang.rank}.form"
        self._ready = False
        self._saves = 0
        self._anew = False  # the last one came to nothing: it may have been the slot

    def pin(self, step: int, training: dict[str, Any]) -> tuple[int, int]:
        """Between two steps: slot and number of what is to be written."""
        self._saves += 1
        return self._memory.pin(step, training, self._anew)

    def write(self, path: Path, marker: Marker, state: State, pinned: tuple[int, int]) -> None:
        """Have it written. Raises NotWritten at every rank."""
        problem = "" if self._ready else self._make_form(f"{marker.generation}.{marker.step}", state)
        slot, number = pinned
        rank = self._gang.rank
        content = {name: value for name, value in folders.content_of(marker).items() if name != "files"}
        save = f"{path.name}/{self._saves}"
        order: dict[str, Any] = {"save": save, "layout": self._memory.layout, "rank": rank, "slot": slot,
                 "number": number, "folder": str(path.absolute()), "head": self._memory.addresses[0],
                 "step": marker.step, "generation": marker.generation, **({"marker": content} if rank == 0 else {})}
        self._see_through(save, order, problem)

    def go_on(self, pending: dict[str, Any]) -> None:
        """See one through that was begun by ranks which are dead now. Raises NotWritten at every rank."""
        self._see_through(pending["save"], None)

    def let_go(self, pending: dict[str, Any]) -> None:
        """Nobody is to see that through."""
        self._memory.unpin()
        self._copier.try_to("drop", DROPPED_WITHIN, save=pending["save"])

    def _make_form(self, name: str, state: State) -> str:
        """What went wrong, here or (if all must know) anywhere. Those that are there were made together if they have
        the same name; after that a pod may have been replaced."""
        group, names = self._gang.saving, [""] * self._gang.world_size
        dist.all_gather_object(names, form.name_of(self._form), group=group)
        try:
            if len(set(names)) > 1 or not names[0]:
                form.write(self._form, name, state, [piece for piece, _ in pieces(state)[0]], group)
            self._ready = True
        except CheckpointException as error:  # the same at every rank
            return reason(error)
        except OSError as error:
            return describe(error)
        return ""

    def _see_through(self, save: str, order: dict[str, Any] | None, problem: str = "") -> None:
        problems: list[str] = [""] * self._gang.world_size
        dist.all_gather_object(problems, problem or self._await_part(save, order), group=self._gang.saving)
        lost = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
        answer = [self._await_verdict(save, bool(lost)) if self._gang.first else ("", False)]
        dist.broadcast_object_list(answer, 0, group=self._gang.saving)
        self._memory.unpin()
        verdict, copiers = answer[0]
        self._anew = bool(verdict)
        if verdict:
            raise NotWritten(lost[0] if lost else verdict, copiers)

    def _await_part(self, save: str, order: dict[str, Any] | None) -> str:
        """Until this rank's files are written, or known not to be, and rank 0's copier knows it. What went wrong with
        copiers, if anything did."""
        question: dict[str, Any] = {"layout": self._memory.layout, "rank": self._gang.rank, "save": save}
        try:
            for _ in range(ORDERS):
                if order is not None:
                    self._copier.ask("save", ANSWERS, **order)
                answer: dict[str, Any] = {"state": WRITING}
                while answer["state"] == WRITING:
                    answer = self._copier.ask("written", **question)
                if answer["state"] == HANDED_IN:
                    return ""
                if order is None:
                    break
            assert answer["state"] in (LOST, UNKNOWN)
            return str(answer["problem"])
        except OSError as error:
            return f"the copier does not answer: {error}"

    def _await_verdict(self, save: str, lost: bool) -> tuple[str, bool]:
        """On rank 0: empty once the marker is written, else why it will not be; and whether copiers are to blame."""
        try:
            if lost:
                return str(self._copier.ask("drop", save=save)["verdict"]), True
            answer: dict[str, Any] = {}
            while "verdict" not in answer:
                answer = self._copier.ask("verdict", save=save)
            return str(answer["verdict"]), bool(answer.get("copiers"))
        except OSError as error:
            return f"the copier does not answer: {error}", True
