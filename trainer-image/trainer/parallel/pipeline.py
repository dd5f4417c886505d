"""Pipeline parallelism: which layers are whose, and torch's schedules over them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torchs

from trainer.parallel.layout import Layout
from trainer.timeline import STAGES, span

SCHEDULES = {"1F1B": torchs.Schedule1F1B, "Interleaved1F1B": torchs.ScheduleInterleaved1F1B,
             "ZBV": torchs.ScheduleZBVZeroBubble}


def _seen(wait: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(wait)
    def waited(messages: Any) -> None:
        with span(STAGES):
            wait(messages)

    return waited


torchs._wait_batch_p2p = _seen(torchs._wait_batch_p2p)  # else a profile does not tell a wait from Python's work


class Absent(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """In the place of a module that another stage has. It has no parameters, so those of the rest keep their names."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Hand on what comes."""
        return hidden


def present(model: Any) -> list[Any]:
    """The blocks that are this stage's."""
    return [block for block in model.model.layers if not isinstance(block, Absent)]


def owner(stage: int, layout: Layout) -> int:
    """The pipeline rank of a stage: in turn, or for ZBV down and up again like a V."""
    if layout.schedule == "ZBV" and stage >= layout.pipeline:
        return layout.stages - 1 - stage
    return stage % layout.pipeline


def stages_of(rank: int, layout: Layout) -> list[int]:
    """The stages of a pipeline rank, ascending."""
    return [stage for stage in range(layout.stages) if owner(stage, layout) == rank]


def cut(model: Any, stage: int, layout: Layout) -> None:
    """Take everything out of a meta LlamaForCausalLM that is not of `stage`, in place."""
    first = sum(layout.stage_layers[:stage])
    mine = range(first, first + layout.stage_layers[stage])
    for number in range(len(model.model.layers)):
        if number not in mine:
            model.model.layers[number] = Absent()
    if stage > 0:
        model.model.embed_tokens = Absent()
    if stage < layout.stages - 1:
        model.model.norm = Absent()
        model.lm_head = Absent()


def make_callable(model: Any, stage: int, layout: Layout, arguments: Callable[[], dict[str, Any]],
                  routed: Callable[[int, Any], torch.Tensor]) -> None:
    """Let a stage be called with token ids (the first) or hidden states (the others); it returns hidden states or (the
    last) logits. `arguments`: what every call of the model gets besides.

    In training the stages of a mixture hand on what `routed` makes of their number and their routers' logits, added
    up: in the forward pass what its balance is told by comes to the last stage, in the backward pass the gradients of
    all routers' probabilities to the others."""
    first, last = stage == 0, stage == layout.stages - 1

    def forward(self: Any, value: torch.Tensor, before: torch.Tensor | None = None,
                documents: torch.Tensor | None = None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        given = {"input_ids" if first else "inputs_embeds": value, "documents": documents, **arguments()}
        balanced = layout.experts > 0 and self.training
        found = self.model(**given, **({"output_router_logits": True} if balanced else {}))
        hidden: torch.Tensor = found.last_hidden_state
        result = self.lm_head(hidden) if last else hidden
        if not balanced:
            return result
        own = routed(stage, found.router_logits)
        return result, own if before is None else before + own

    model.forward = types.MethodType(forward, model)


class Pipeline:
    """This rank's stages, connected to those before and after them."""

    def __init__(self, models: Sequence[Any], stages: Sequence[int], layout: Layout, device: torch.device, group: Any,
                 hidden: torch.Tensor, loss: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        """`hidden`: a meta tensor of the shape and type that is handed from stage to stage. `loss`: of what the last
        stage returns and targets, scaled as its gradient is to be."""
        self._models = dict(zip(stages, models, strict=True))
        self._layout, self._device, self._group, self._hidden, self._loss = layout, device, group, hidden, loss
        self._schedules: dict[int, Any] = {}

    @property
    def has_last(self) -> bool:
        """Does this rank compute the loss?"""
        return self._layout.stages - 1 in self._models

    def train(self, inputs: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor | None,
              count: int) -> None:
        """Forward and backward of `count` micro-batches; (samples, positions) each.

        After a failure nothing is kept of them: outputs that never came to their backward pass hold autograd's graph,
        which holds the model by FSDP2's hooks, which holds this: a circle that Python's collector does not see. What
        a stage raises comes as it is: torch's own words around it tell shapes, and hide that another rank is lost."""
        given = {} if documents is None else {"documents": documents}
        try:
            self._schedule(count).step(*([inputs] if 0 in self._models else []),
                                       target=targets if self.has_last else None, return_outputs=False, **given)
            return
        except BaseException as error:
            self._schedules.clear()
            if error.__cause__ is None:
                raise
            inner = error.__cause__
        try:
            raise inner
        finally:
            del inner  # its traceback has this frame

    def _schedule(self, count: int) -> Any:
        if count not in self._schedules:
            stages = [self._stage(number) for number in self._models]
            kind = SCHEDULES[self._layout.schedule]
            single = issubclass(kind, torchs.PipelineScheduleSingle)
            self._schedules[count] = kind(stages[0] if single else stages, count, loss_fn=self._loss, scale_grads=False)
        return self._schedules[count]

    def _stage(self, number: int) -> PipelineStage:
        return PipelineStage(self._models[number], number, self._layout.stages, self._device, group=self._group)

    def forward(self, inputs: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor | None:
        """One micro-batch forward only. Returns the logits at the rank that has the last stage."""
        me = dist.get_rank(self._group)
        value: torch.Tensor = inputs
        for stage in range(self._layout.stages):
            here = owner(stage, self._layout)
            before = owner(stage - 1, self._layout) if stage else here
            if here == me:
                if before != me:
                    value = torch.empty(self._hidden.shape, dtype=self._hidden.dtype, device=self._device)
                    with span(STAGES):
                        dist.recv(value, group_src=before, group=self._group)
                value = self._models[stage](value, documents=documents)
            elif before == me:
                with span(STAGES):
                    dist.send(value.contiguous(), group_dst=here, group=self._group)
        return value if self.has_last else None
