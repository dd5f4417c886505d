"""This rank's part of a model that is spread over ranks, and how a batch goes through it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.parallel import capacity, places, shard
from trainer.parallel.context import Context
from trainer.parallel.experts import balance_sum
from trainer.parallel.loss import cross_entropy_sum
from trainer.parallel.mesh import Mesh
from trainer.parallel.pipeline import Pipeline
from trainer.parallel.places import Places
from trainer.precision import DTYPES, Precision

LAYER = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.")


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed at a time, whole sequences: inputs and targets (samples, positions); documents
    likewise, the number of the document that each input token is of, or None for one each."""

    inputs: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None = None


Take = Callable[[int], MicroBatch]  # the micro-batch of a number; called once each, in order


class ParallelModel:
    """One stage, or several of a pipeline, each a transformers model that holds this rank's slices."""

    def __init__(self, stages: Sequence[Any], numbers: Sequence[int], mesh: Mesh, shapes: dict[str, torch.Size],
                 precision: Precision, factor: float | None = None) -> None:
        """`stages`: modules with the stage `numbers`; `shapes`: every parameter of the whole model, in order; `factor`:
        of the experts' capacity."""
        self.stages = list(stages)
        self.numbers = list(numbers)
        self.mesh = mesh
        self.layout = mesh.layout
        self.shapes = shapes
        self.config = stages[0].config
        self.mixture = self.config.model_type == "mixtral"
        self.places: Places = []  # of a mixture's experts
        self.load: torch.Tensor | None = None  # of a batch: (layers, experts + 1), see _received()
        self._capacity = factor
        self._precision = precision
        self.context = Context(mesh) if self.layout.context > 1 else None
        self._positions: dict[int, torch.Tensor] = {}
        self._length = 0  # of the sequences that are being computed
        self._factor = 1.0
        self._pipelines: dict[tuple[int, int], Pipeline] = {}
        self.place_experts(None)

    # ---- as a module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters by their names in Hugging Face's files."""
        for stage in self.stages:
            yield from stage.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Likewise, without names."""
        for _, parameter in self.named_parameters():
            yield parameter

    def modules(self) -> Iterator[nn.Module]:
        """Of every stage."""
        for stage in self.stages:
            yield from stage.modules()

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode. Back in training, parameters are shards again: a forward pass alone leaves whole
        ones (with ZeRO-2, and of the outermost module always), which are not what is saved."""
        for stage in self.stages:
            stage.train(mode)
        for module in self.modules() if mode else ():
            if hasattr(module, "reshard"):  # FSDPModule
                module.reshard()

    @property
    def parameter_count(self) -> int:
        """Numbers in the whole model, tied ones once."""
        return sum(shape.numel() for shape in self.shapes.values())

    def expert_ranks(self) -> list[list[int]]:
        """Of a mixture: by layer and expert, which rank of those that share its experts out has it."""
        each = self.config.num_local_experts // self.layout.expert
        return [[place // each for place in layer] for layer in self.places]

    def place_experts(self, now: Places | None) -> None:
        """Of a mixture: from now on its stacked parameters have the experts at these places, None: in order. Nothing
        is moved."""
        if not self.mixture:
            return
        self.places = now or places.first(self.config.num_hidden_layers, self.config.num_local_experts)
        for number, block in enumerate(self.stages[0].model.layers):
            found = self.places[number]
            moved = found != list(range(len(found)))
            block.mlp.experts.trainyard_places = torch.tensor(found, device=self.mesh.device) if moved else None

    def take_places(self, text: str | None) -> None:
        """Those that came with the tensors. Raises ValueError."""
        self.place_experts(places.read(text, self.config.num_hidden_layers, self.config.num_local_experts) if text
                           else None)

    @property
    def moved(self) -> bool:
        """Whether any expert is at another place than that of its number."""
        return any(layer != list(range(len(layer))) for layer in self.places)

    def places_in(self, parameter: str) -> Sequence[int] | None:
        """Of the parameter of this name, if it stacks experts."""
        layer = LAYER.match(parameter) if self.mixture else None
        return self.places[int(layer[1])] if layer else None

    # ---- a batch

    def train_batch(self, count: int, take: Take, factor: float, before: Callable[[int], None]) -> torch.Tensor:
        """Forward and backward over `count` micro-batches; gradients are those of `factor` times the loss (and, in a
        mixture, what balances its experts), averaged over the ranks of FSDP2. `before(number)` is called before each
        micro-batch (before the first only in a pipeline). Returns the loss summed over the target tokens that this
        rank reports, so that the sum over all ranks counts each once."""
        self._factor = factor
        self.load = None
        if self.layout.pipeline > 1:
            before(0)
            total = self._train_pipeline([take(number) for number in range(count)])
        else:
            total = torch.zeros((), device=self.mesh.device)
            for number in range(count):
                shard.accumulate(self.stages[0], self.layout, last=number == count - 1)
                before(number)
                part, aim = self._losses(take(number))
                aim.backward()
                total += part.detach()
        return total if self.mesh.counts_loss else torch.zeros_like(total)

    def evaluate_batch(self, count: int, take: Take) -> torch.Tensor:
        """The loss alone, summed likewise."""
        total = torch.zeros((), device=self.mesh.device)
        with torch.no_grad():
            for number in range(count):
                total += self._loss_sum(take(number))
        return total if self.mesh.counts_loss else torch.zeros_like(total)

    def _losses(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Over this rank's positions of one micro-batch: the loss, and what goes backward: `factor` times it and, in a
        mixture, what keeps its experts evenly busy."""
        if not self.layout.fuses_head:
            loss = self._loss_sum(micro)
            return loss, loss * self._factor
        loss, routers = self._whole_model(micro, output_router_logits=True) if self.mixture else \
            self._whole_model(micro)
        if not self.mixture:
            return loss, loss
        balance, load = balance_sum(routers, self.config.num_experts_per_tok, self.config.router_aux_loss_coef,
                                    self.layout.world_size)
        load = self._received(load, micro.inputs)
        self.load = load if self.load is None else self.load + load
        return loss, loss + balance * self._factor

    def _received(self, routed: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Of the tokens of a micro-batch of all ranks that the router sent to each expert, (layers, experts): those
        that it got, and one column more with those that were dropped, of all experts."""
        most = math.inf
        if self._capacity is not None:
            tokens = inputs.numel() // self.layout.context * self.layout.world_size
            most = capacity.limit(self._capacity, tokens * self.config.num_experts_per_tok, routed.shape[1])
        got = routed.clamp(max=most)
        return torch.cat((got, (routed - got).sum(1, keepdim=True)), 1)

    def _whole_model(self, micro: MicroBatch, **given: Any) -> tuple[torch.Tensor, Any]:
        """Head and loss as one; see loss.make_callable."""
        inputs, targets, documents = self._local(micro)
        loss, routers = self.stages[0](inputs, targets, self._factor, documents=documents, **self.arguments(), **given)
        return loss, routers

    def _loss_sum(self, micro: MicroBatch) -> torch.Tensor:
        """Over this rank's positions of one micro-batch; zero where another rank has the last stage."""
        if self.layout.fuses_head:
            return self._whole_model(micro)[0]
        inputs, targets, documents = self._local(micro)
        if self.layout.pipeline > 1:
            logits = self._pipeline(inputs).forward(inputs, documents)
            if logits is None:
                return torch.zeros((), device=self.mesh.device)
        else:
            logits = self.stages[0](input_ids=inputs, documents=documents, **self.arguments()).logits
        return cross_entropy_sum(logits, targets, self.mesh.tensor_group)

    def _train_pipeline(self, micros: Sequence[MicroBatch]) -> torch.Tensor:
        whole = MicroBatch(torch.cat([one.inputs for one in micros]), torch.cat([one.targets for one in micros]),
                           _join_documents(micros))
        inputs, targets, documents = self._local(whole)
        pipeline = self._pipeline(inputs[: len(inputs) // len(micros)])
        losses = pipeline.train(inputs, targets, documents, len(micros))
        if not losses:
            return torch.zeros((), device=self.mesh.device)
        return torch.stack([loss.detach() for loss in losses]).sum() / self._factor

    def _local(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """This rank's positions, on its device; documents stay whole: attention looks at all of them."""
        device = self.mesh.device
        inputs, targets = micro.inputs, micro.targets
        self._length = inputs.shape[1]
        if self.context is not None:
            inputs, targets = self.context.local(inputs), self.context.local(targets)
        documents = None if micro.documents is None else micro.documents.to(device)
        return inputs.to(device), targets.to(device), documents

    def arguments(self) -> dict[str, Any]:
        """What the model is called with besides tokens. Positions are said always: a model that sees a part of a
        sequence would number it from 0."""
        if self._length not in self._positions:
            positions = torch.arange(self._length)[None]
            local = positions if self.context is None else self.context.local(positions)
            self._positions[self._length] = local.to(self.mesh.device)
        return {"position_ids": self._positions[self._length], "context": self.context}

    def _pipeline(self, inputs: torch.Tensor) -> Pipeline:
        """The pipeline for micro-batches of this shape."""
        samples, positions = inputs.shape
        if (samples, positions) not in self._pipelines:
            dtype = torch.float32 if self._precision == "fp32" else DTYPES[self._precision]
            hidden = torch.empty(samples, positions // self.layout.tensor, self.config.hidden_size, dtype=dtype,
                                 device="meta")
            self._pipelines[samples, positions] = Pipeline(self.stages, self.numbers, self.layout, self.mesh.device,
                                                           self.mesh.pipeline_group, hidden, self._scaled_loss)
        return self._pipelines[samples, positions]

    def _scaled_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy_sum(logits, targets, self.mesh.tensor_group) * self._factor


def _join_documents(micros: Sequence[MicroBatch]) -> torch.Tensor | None:
    if all(one.documents is None for one in micros):
        return None
    return torch.cat([torch.zeros_like(one.inputs) if one.documents is None else one.documents for one in micros])
