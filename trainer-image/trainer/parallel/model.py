"""This rank's part of a model that is spread over ranks, and how a batch goes through it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.parallel import capacity, places, shard
from trainer.parallel.context import Context
from trainer.parallel.experts import balance, balance_sum, routed
from trainer.parallel.loss import cross_entropy_sum
from trainer.parallel.mesh import Mesh
from trainer.parallel.pipeline import Absent, Pipeline
from trainer.parallel.places import Places
from trainer.precision import DTYPES, Precision
from trainer.timeline import STAGES, span

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
        self._routed: dict[int, list[torch.Tensor]] = {}  # by stage and micro-batch: tokens by layer and expert
        self._parts: list[torch.Tensor] = []  # losses of a pipeline's micro-batches
        self._length = 0  # of the sequences that are being computed
        self._factor = self._real = 1.0
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

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """This rank's blocks with their numbers in the whole model."""
        for stage in self.stages:
            yield from ((number, block) for number, block in enumerate(stage.model.layers)
                        if not isinstance(block, Absent))

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
        for number, block in self.blocks():
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

    def train_batch(self, count: int, take: Take, factor: float, before: Callable[[int], None],
                    real: float = 1.0) -> torch.Tensor:
        """Forward and backward over `count` micro-batches; gradients are those of `factor` times the loss (and, in a
        mixture, what balances its experts), averaged over the ranks of FSDP2. `before(number)` is called before each
        micro-batch (before the first only in a pipeline). `real`: the share of the samples that is no padding. Returns
        the loss summed over the target tokens that this rank reports, so that the sum over all ranks counts each
        once."""
        self._factor, self._real = factor, real
        self.load = None
        self._routed.clear()
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
        if self._routed:
            self.load = self._add_up_load(count)
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
            inputs, targets, documents = self._local(micro)
            return self._loss_and_aim(self.stages[0](inputs, documents=documents), targets)
        loss, routers = self._whole_model(micro, output_router_logits=True) if self.mixture else \
            self._whole_model(micro)
        if not self.mixture:
            return loss, loss
        even, load = balance_sum(routers, self.config.num_experts_per_tok, self.config.router_aux_loss_coef,
                                 self.layout.world_size)
        tokens = micro.inputs.numel() // self.layout.context * self.layout.world_size
        load = self._received(load, tokens * self.config.num_experts_per_tok)
        self.load = load if self.load is None else self.load + load
        return loss, loss + even * self._factor * self._real

    def _loss_and_aim(self, output: Any, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Likewise, of what the last stage returned for a micro-batch."""
        if not self.mixture:
            loss = cross_entropy_sum(output, targets, self.mesh.tensor_group)
            return loss, loss * self._factor
        logits, (chances, picked) = output
        loss = cross_entropy_sum(logits, targets, self.mesh.tensor_group)
        ranks, picked = self.layout.world_size // self.layout.pipeline, picked.detach().clone()
        if ranks > 1:
            dist.all_reduce(picked, group=self.mesh.stage_group)
        even = balance(chances, picked, self.config.router_aux_loss_coef, self.config.num_hidden_layers,
                       targets.numel() // self.layout.tensor * ranks)
        return loss, (loss + even * self._real) * self._factor

    def count_routed(self, stage: int, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of a mixture's stage and a micro-batch: what its balance is told by, over the stage's layers: (2, experts),
        probabilities and tokens. Tokens by layer are kept until the end of the batch."""
        chances, load = routed(logits, self.config.num_experts_per_tok)
        self._routed.setdefault(stage, []).append(load)
        return torch.stack((chances, load.sum(0)))

    def _add_up_load(self, count: int) -> torch.Tensor:
        """Of a batch of `count` micro-batches, over all ranks and stages; see _received()."""
        routed = torch.zeros(count, self.config.num_hidden_layers, self.config.num_local_experts,
                             device=self.mesh.device)
        for stage, parts in self._routed.items():  # torch's pipeline begins with one that is none
            first = sum(self.layout.stage_layers[:stage])
            routed[:, first: first + len(parts[0])] = torch.stack(parts[-count:])
        if self._capacity is None:  # micro-batches make no difference
            routed = routed.sum(0, keepdim=True)
        if self.layout.world_size > 1:
            with span(STAGES):  # it comes first after a pipeline's last micro-batch
                dist.all_reduce(routed)
        return self._received(routed, int(routed[0, 0].sum())).sum(0)

    def _received(self, routed: torch.Tensor, assignments: int) -> torch.Tensor:
        """Of the tokens of a micro-batch of all ranks that the router sent to each expert, (..., layers, experts),
        `assignments` in a layer: those that it got, and one column more with those that were dropped, of all
        experts."""
        most = math.inf if self._capacity is None else capacity.limit(self._capacity, assignments, routed.shape[-1])
        got = routed.clamp(max=most)
        return torch.cat((got, (routed - got).sum(-1, keepdim=True)), -1)

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
            logits = self.stages[0](inputs, documents=documents)
        return cross_entropy_sum(logits, targets, self.mesh.tensor_group)

    def _train_pipeline(self, micros: Sequence[MicroBatch]) -> torch.Tensor:
        whole = MicroBatch(torch.cat([one.inputs for one in micros]), torch.cat([one.targets for one in micros]),
                           _join_documents(micros))
        inputs, targets, documents = self._local(whole)
        pipeline = self._pipeline(inputs[: len(inputs) // len(micros)])
        self._parts.clear()
        pipeline.train(inputs, targets, documents, len(micros))
        if not pipeline.has_last:
            return torch.zeros((), device=self.mesh.device)
        return torch.stack(self._parts[-len(micros):]).sum()  # torch begins with one that is none

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

    def _scaled_loss(self, output: Any, targets: torch.Tensor) -> torch.Tensor:
        loss, aim = self._loss_and_aim(output, targets)
        self._parts.append(loss.detach())
        return aim


def _join_documents(micros: Sequence[MicroBatch]) -> torch.Tensor | None:
    if all(one.documents is None for one in micros):
        return None
    return torch.cat([torch.zeros_like(one.inputs) if one.documents is None else one.documents for one in micros])
