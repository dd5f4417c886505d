"""The steps of a run: resume, compute, copy, evaluate, save."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from trainyard.api.train import TrainConfig

from trainer import config as configs
from trainer.checkpoint import folder as folders
from trainer.checkpoint import recall, resume
from trainer.checkpoint.copies import open_memory
from trainer.checkpoint.memory import Memory, local_of
from trainer.checkpoint.pinned import Pinned
from trainer.checkpoint.recall import Recall
from trainer.checkpoint.resume import Choice
from trainer.checkpoint.room import Unavailable
from trainer.checkpoint.saver import Saver, State
from trainer.config import Run
from trainer.data.batches import Batches
from trainer.distributed import Gang, gather, say, tell_all, together
from trainer.errors import ConfigError
from trainer.feed import micro_batch
from trainer.finite import IN_A_ROW, Diverged, First, GradientWatch, Record, SuspectDevice, Verdict, firsts, place
from trainer.inject import Injection
from trainer.model import weights
from trainer.optimizer import AdamW, learning_rate
from trainer.parallel import moves, places
from trainer.parallel.load import ExpertLoad
from trainer.parallel.model import MicroBatch, ParallelModel
from trainer.parallel.moves import ExpertMoves
from trainer.precision import LossScale, Precision, clear_overflow, overflow_seen
from trainer.progress import Progress
from trainer.spikes import Spikes
from trainer.stragglers import OwnTime, Stragglers, measurable
from trainer.timeline import CHECKPOINT, DATA, STAGES, Timeline, span

MEASURED_STEPS = 6  # after which it is decided how often copies in memory are taken
FINAL_TRIES = 5  # of the save that ends a run: 1, 2, 4, 8 seconds apart


@dataclass
class Totals:
    """What the ranks add up once a step."""

    loss: float  # mean over the batch's target tokens
    norm: float  # of the gradients, before clipping
    overflow: bool
    drain: bool
    busy: bool  # is a rank still writing a checkpoint?
    save: bool
    updated: bool = True  # False: the batch was left out

    @property
    def finite(self) -> bool:
        """Whether the model may be updated with it."""
        return math.isfinite(self.loss) and math.isfinite(self.norm) and not self.overflow


class Loop:
    """The steps, and the counters that a checkpoint carries besides tensors: `step` finished, `samples` taken."""

    def __init__(self, config: TrainConfig, run: Run, gang: Gang, model: ParallelModel, optimizer: AdamW,
                 training: Batches, validation: Batches | None, batch_size: int, precision: Precision,
                 progress: Progress, identity: dict[str, Any]) -> None:
        self.config, self.run_, self.gang = config, run, gang
        self.model, self.optimizer = model, optimizer
        self.training, self.validation = training, validation
        self.batch_size = batch_size
        self.micro_batches = configs.micro_batches(config, model.layout, batch_size)
        samples = self.micro_batches * config.micro_batch_size * model.layout.batch_ranks
        self.real = batch_size / samples  # the rest is padding
        self.progress, self.identity = progress, identity
        self.scale = LossScale() if precision == "fp16" else None
        self.watch = GradientWatch(list(model.modules()))
        self.own_time = OwnTime()
        self.stragglers: Stragglers | None = None
        if measurable(model.layout, gang.device):
            self.own_time.measure_waits()
            self.stragglers = Stragglers()
        self.record = Record()  # of batches that were left out
        self.spikes = Spikes(config.spike) if config.spike else None
        self.loss = torch.zeros(())  # of this rank, summed over its tokens
        self.suspect = ""  # why this rank's device is to be left, once it is
        self.injection = Injection.read(run.inject)
        self.experts = ExpertLoad(model, ("log", "profile", moves.READER))
        self.moves = ExpertMoves(config.experts, gang, model, self.experts)
        self.step = self.samples = 0
        self.save_begun = 0  # step of the newest save that was started
        self.timeline = Timeline(config.profile, profile_folder(config, run), gang, model.layout,
                                 sum(1 for _ in model.blocks()), run.rank.local_world_size, self.micro_batches,
                                 batch_size * config.data.sequence_length, self.experts_page)
        self.saver: Saver | None = None
        self.memory: Memory | None = None
        self.choice: Choice | None = None  # checkpoint, once somebody had to know it for sure
        self.step_seconds = math.inf  # the fastest step
        self.decide_at = 0  # the step after which it is decided how often copies are taken
        self.skipped_told = 1  # copies that are left out when that is said next

    # ---- what a checkpoint holds

    def state(self) -> State:
        """Tensors, sharded; loading into them restores model and optimizer."""
        parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return {"model": parameters, **self.optimizer.state()}

    def counters(self) -> dict[str, Any]:
        """The rest."""
        scale = {"lossScale": self.scale.value, "goodSteps": self.scale.good_steps} if self.scale else {}
        spikes = self.spikes.dump() if self.spikes else {}
        experts = {"experts": places.dump(self.model.places)} if self.model.moved else {}
        return {"samples": self.samples, "updates": self.optimizer.updates, **scale, **spikes, **experts,
                **self.record.dump()}

    def resume(self) -> None:
        """Go on from the newest state that is whole, copies in memory or a checkpoint that verifies; if there is none,
        with the first weights."""
        root = self.run_.checkpoint
        generation = self.run_.generation or "1"
        if root is None:
            say(self.gang, "no checkpoint folder: nothing is saved")
            self.progress.update(durableStep=0)
        else:
            generation = tell_all(self.gang, lambda: self.claim(root))
            self.saver = Saver(root, self.gang, generation, self.run_.keep, self.identity, self.committed,
                               self.save_failed)
        self.memory = open_memory(self.run_.memory, self.gang, self.model.layout, self.identity, generation,
                                  lambda text: self.warn("NoMemoryCopies", text), root is not None)
        recalled = self.resume_from_memory(root)
        if recalled is None and (root is None or not self.resume_from_checkpoint(root)):
            first_weights(self.model, self.config, self.gang)
        self.attach_memory(recalled)
        self.tell_resumed()

    def tell_resumed(self) -> None:
        """Say where training goes on, and how far all ranks had come that some pod still knows of: the steps between
        are lost."""
        finished = torch.tensor(math.inf if self.run_.finished is None else self.run_.finished, dtype=torch.float64)
        dist.all_reduce(finished, dist.ReduceOp.MIN, group=self.gang.control)
        known = int(finished) if math.isfinite(float(finished)) else None
        self.progress.update(resumedStep=self.step, finishedStep=known)

    def resume_from_memory(self, root: Path | None) -> Recall | None:
        """The copies that were loaded, if memory holds a newer one than the checkpoint folder."""
        if self.memory is None:
            return None
        found = recall.find(self.memory)
        if not found:
            return None
        durable = tell_all(self.gang, lambda: resume.newest_marked(root) if root else None)
        if root is not None and durable is not None and durable.step > found[0].step:
            self.choice = self.verified(root)  # the newest may be damaged, and the next older than what memory has
            durable = self.choice.marker
        for one in found:
            if durable is not None and durable.step > one.step:
                return None
            started = time.monotonic()
            counters = recall.load(self.memory, one, self.state())
            if counters is not None:
                self.go_on(one.step, counters)
                if self.saver is not None and durable is not None:
                    self.save_begun, self.saver.saved_step = durable.step, durable.step
                    if self.choice is not None:
                        self.saver.protected, self.saver.damaged = self.choice.path, self.choice.damaged
                    self.progress.update(durableStep=durable.step)
                say(self.gang, f"resumed after step {self.step} from copies in memory, of run {one.run}, in "
                               f"{time.monotonic() - started:.2f} s")
                return one
            for tensors in self.state().values():  # what was loaded in part must not be trained on
                for tensor in tensors.values():
                    local_of(tensor).zero_()
        return None

    def resume_from_checkpoint(self, root: Path) -> bool:
        """Load the newest checkpoint that verifies, if there is one; whether there was."""
        assert self.saver is not None
        choice = self.choice or self.verified(root)
        self.saver.damaged = choice.damaged
        if choice.path is None or choice.marker is None:
            return False
        started = time.monotonic()
        resume.load(choice.path, self.state())
        self.go_on(choice.marker.step, choice.marker.training)
        self.save_begun = self.step
        self.saver.protected, self.saver.saved_step = choice.path, self.step
        self.progress.update(durableStep=self.step)
        say(self.gang, f"resumed after step {self.step} from {choice.path.name}, saved by {choice.marker.world_size} "
                       f"ranks, in {time.monotonic() - started:.2f} s")
        return True

    def verified(self, root: Path) -> Choice:
        """The newest checkpoint that verifies; every rank reads its share."""
        return resume.newest_that_verifies(root, self.gang, self.identity,
                                           lambda text: self.warn("CheckpointDamaged", text))

    def go_on(self, step: int, counters: dict[str, Any]) -> None:
        """Take over what came with the tensors."""
        self.step, self.samples = step, counters["samples"]
        self.take_over(counters)
        self.record = Record.read(counters)
        if self.config.spike:
            self.spikes = Spikes(self.config.spike, counters.get("spikes"))
        self.progress.update(step=step)

    def take_over(self, counters: dict[str, Any]) -> None:
        """What belongs to the tensors."""
        self.optimizer.updates = counters["updates"]
        self.model.take_places(counters.get("experts"))
        if self.scale and "lossScale" in counters:
            self.scale.value, self.scale.good_steps = counters["lossScale"], counters["goodSteps"]

    def attach_memory(self, recalled: Recall | None) -> None:
        """From here on copies are kept. Those of the step we go on from are made whole again first."""
        if self.memory is None:
            return
        try:
            same = recalled is not None and recalled.layout == self.memory.layout
            live = {"model": dict(self.model.named_parameters()), **self.optimizer.state()}
            self.memory.attach(live, (recalled.step, recalled.run) if recalled is not None and same else None)
        except Unavailable as error:
            # A job that has trained already goes on, whatever has become of the pods' memory.
            if self.run_.memory is not None and self.run_.memory.explicit and not self.step:
                raise ConfigError(f"checkpoint.memory: {error}") from None
            self.warn("NoMemoryCopies", str(error))
            self.memory = None
            return
        if self.saver is not None and self.memory.pins:
            self.save_begun = self.saver.take_over(Pinned(self.memory), self.memory.pending, self.step)
        if self.memory.fewer:
            self.warn("FewerMemoryCopies", self.memory.fewer)
        if self.memory.given_up:
            say(self.gang, self.memory.given_up)
        if not self.memory.outlive_node:
            say(self.gang, "copies in memory outlive the loss of a pod, but not that of its node: all pods are there")
        if recalled is not None:
            self.memory.copy(self.step, self.counters(), refill=recalled.run if same else self.memory.run)
        self.decide_at = self.step + MEASURED_STEPS

    def copy_to_memory(self, seconds: float) -> None:
        """After a finished step that took so long."""
        if self.memory is None:
            return
        self.step_seconds = min(self.step_seconds, seconds)
        with span(CHECKPOINT):
            self.memory.copy(self.step, self.counters())
        skipped = self.memory.rotation.skipped
        if skipped == self.skipped_told:
            self.skipped_told *= 10
            say(self.gang, f"step {self.step} is not copied: other pods still wait for an earlier one; {skipped} "
                           f"{'copy was' if skipped == 1 else 'copies were'} left out so far")
        if self.step == self.decide_at and not self.memory.rhythm.decided:
            self.memory.decide(self.step_seconds)
            say(self.gang, f"copies in memory: {self.memory.rhythm}")

    def claim(self, root: Path) -> str:
        """On rank 0: this run's generation, from now on the one that may delete checkpoints."""
        generation = self.run_.generation or resume.default_generation(root)
        try:
            folders.claim(root, generation)
        except OSError as error:
            self.warn("CheckpointFailed", f"cannot write to the checkpoint folder {root}: {error.strerror}")
        return generation

    # ---- the loop

    def run(self) -> bool:
        """All steps that are left, and the last checkpoint. Returns whether a drain ended it early."""
        config = self.config
        logged, since = self.step, time.monotonic()
        drained = False
        self.progress.pulse.restart_steps()
        while self.step < config.steps and not drained:
            started = time.monotonic()
            self.timeline.begin(self.step + 1)
            rate = learning_rate(config.optimizer, config.steps, self.step + 1)
            totals = self.train_step(rate)
            self.experts.add()
            self.copy_to_memory(time.monotonic() - started)
            self.report_step(totals, time.monotonic() - started)
            if self.suspect:
                raise SuspectDevice(self.suspect)
            if self.step % config.log_every == 0 or self.step == config.steps:
                now = time.monotonic()
                speed = (self.step - logged) * self.batch_size * config.data.sequence_length / (now - since)
                what = f"loss {totals.loss:.6f} norm {totals.norm:.4f}" if totals.updated else "batch skipped"
                busy = self.experts.take("log")
                say(self.gang, f"step {self.step}/{config.steps} {what} lr {rate:.3e} tokens/s {speed:.0f}"
                               f"{f' {busy}' if busy else ''}")
                self.progress.update(tokensPerSecond=round(speed), expertImbalance=round(busy.imbalance, 3) if busy
                                     else None)
                logged, since = self.step, now
            drain = totals.drain
            if config.evaluate and not drain and (self.step % config.evaluate.every == 0 or self.step == config.steps):
                before = time.monotonic()
                with self.progress.activity("evaluate"):
                    drain = not self.evaluate(config.evaluate.steps)
                since += time.monotonic() - before  # tokens/s is that of training
            drained = drain and self.step < config.steps
            if totals.save and not totals.busy and not drained and self.step < config.steps:
                self.save()
            self.end_of_step(drained or self.step == config.steps)
        with self.progress.activity("save"):
            self.save_last()
        return drained

    def busy(self) -> str:
        """Why this rank cannot leave its gang now, or an empty string. From any thread."""
        if self.saver is not None and self.saver.busy:
            return "is writing a checkpoint"
        phase = self.progress.pulse.doing
        return "" if phase == "step" else f"is in phase {phase}"

    def close(self) -> None:
        """End the threads that hold model and groups."""
        if self.saver is not None:
            self.saver.wait()
        if self.memory is not None:
            self.memory.close()

    def end_of_step(self, last: bool) -> None:
        """Whatever was to be done after a step is done."""
        problem = self.timeline.end(self.step, last)
        if problem is not None:
            self.warn("NoProfile", problem)
        if not last:
            self.moves.after(self.step, self.state)

    def experts_page(self) -> list[str]:
        """What a profile says of a mixture's experts, since it last asked."""
        busy = self.experts.take("profile")
        return busy.page() if busy else []

    def train_step(self, rate: float) -> Totals:
        """One batch, and one update with it. A batch that is not finite is computed once more, then left out; raises
        Diverged after three of those. A batch that the job said to skip is not computed at all."""
        targets = self.batch_size * self.config.data.sequence_length
        if self.step + 1 in self.config.skip_steps:
            totals = replace(self.add_up(torch.zeros(()), targets), updated=False)
        else:
            totals = self.compute(targets, 1)
            if self.judge(totals, 1) is Verdict.AGAIN:
                first = firsts(self.gang, self.watch.first(self.loss))
                self.optimizer.zero_gradients()
                totals = self.compute(targets, 2)
                self.tell_not_finite(totals, first)
            if self.spikes is not None and totals.finite and self.spikes.is_one(totals.loss):
                totals.updated = False
                self.rewind(self.spikes, totals.loss)
            else:
                self.update(totals, rate)
                if self.spikes is not None and totals.finite:
                    self.spikes.add(totals.loss)
        self.step += 1
        self.samples += self.batch_size
        return totals

    def compute(self, targets: int, tries: int) -> Totals:
        """Forward and backward over the batch's micro-batches, and the all-reduce. What the model draws is the same
        every time."""
        clear_overflow(self.gang.device)
        self.watch.begin()
        self.own_time.begin()
        factor = self.loss_factor(targets) * self.injection.factor(self.step + 1, self.gang.rank, tries)
        self.loss = self.model.train_batch(
            self.micro_batches, self.next_batch, factor,
            lambda micro: seed_model(self.config.seed, self.step, micro, self.gang.rank), self.real)
        self.loss = self.loss * self.injection.spike(self.step + 1)
        return self.add_up(self.loss, targets)

    def judge(self, totals: Totals, tries: int) -> Verdict:
        """What becomes of the batch. An overflow that a smaller loss scale may cure is an update, of the scale."""
        curable = self.scale is not None and not self.scale.exhausted
        return self.record.judge(totals.finite or curable, tries)

    def tell_not_finite(self, totals: Totals, first: list[First]) -> None:
        """Record whose numbers were not finite first, if the batch is finite the second time: then it was not the
        batch."""
        who = f"first at {', '.join(map(str, first))}" if first else "not at any single rank, only in their sum"
        step, last = self.step + 1, self.samples + self.batch_size - 1
        if not totals.finite:
            return self.warn("NonFinite", f"step {step}: loss or gradients are not finite, computed twice ({who}); the "
                                          f"batch, samples {self.samples} to {last}, is left out")
        self.warn("NonFinite", f"step {step}: loss or gradients were not finite ({who}); computed again they are")
        for one in first:
            suspect = len(first) == 1 and self.record.blame(one.place)
            if suspect and one.rank == self.gang.rank and self.gang.device.type != "cpu":
                self.suspect = (f"{one.place} has computed what is not finite {self.record.blamed[one.place]} times, "
                                f"and a second try was finite: the device is suspect")
        return None

    def loss_factor(self, targets: int) -> float:
        """What the summed loss is multiplied by, so that gradients are those of the mean over `targets` tokens: FSDP2
        averages them over its ranks."""
        averaged_over = self.model.layout.data * self.model.layout.sharding_ranks
        return averaged_over * (self.scale.value if self.scale else 1.0) / targets

    def next_batch(self, micro: int) -> MicroBatch:
        """A micro-batch of the training data."""
        with span(DATA):
            return self.take(self.training, self.samples, micro)

    def take(self, batches: Batches, first: int, micro: int) -> MicroBatch:
        """One micro-batch of this rank in the batch that begins with sample `first`."""
        return micro_batch(batches, self.config, self.model, self.batch_size, first, micro)

    def add_up(self, loss: torch.Tensor, targets: int) -> Totals:
        """The one all-reduce of a step: loss and norm, and the flags on which all ranks must act alike."""
        busy = self.saver is not None and self.saver.busy
        square = self.optimizer.squared_norm(self.model.mesh.copies)
        mine = [float(loss), float(square), overflow_seen(self.gang.device), self.run_.told_to_drain(), busy,
                self.gang.first and self.save_due(), self.memory.behind() if self.memory is not None else 0.0,
                self.gang.first and self.stragglers is not None and self.own_time.due()]
        numbers = torch.tensor(mine, dtype=torch.float64)
        self.own_time.arrive()
        with span(STAGES):  # of a pipeline: who has done its part first waits here for the others
            dist.all_reduce(numbers, group=self.gang.control)
        total, squares, overflow, drain_sum, busy_sum, save, behind, compare = numbers.tolist()
        if compare:
            self.compare_ranks()
        if self.memory is not None:
            self.memory.reduced(behind)
        norm = math.sqrt(squares) if squares >= 0 else math.nan
        return Totals(total / targets, norm / (self.scale.value if self.scale else 1.0), overflow > 0, drain_sum > 0,
                      busy_sum > 0, save > 0)

    def update(self, totals: Totals, rate: float) -> None:
        """Clip and step; or leave out an fp16 step that overflowed, or a batch that was not finite twice. Raises
        Diverged for the third of those in a row."""
        curable = self.scale is not None and not self.scale.exhausted
        if totals.finite:
            clip = max(1.0, totals.norm / self.config.optimizer.clip_norm)
            self.optimizer.step(rate, clip * (self.scale.value if self.scale else 1.0))
            self.record.updated()
        elif not curable:
            totals.updated = False
            if self.record.judge(False, 2) is Verdict.FAIL:
                raise Diverged(f"step {self.step + 1}: the loss is {totals.loss}, the gradients' norm {totals.norm}, "
                               f"and so it was, twice each, for the {IN_A_ROW - 1} batches before; try a lower "
                               f"learning rate, a longer warm-up, or look at the data of these steps")
            self.record.skip(self.step + 1)
        if self.scale and totals.finite:
            self.scale.succeeded()
        elif self.scale:
            self.scale.overflowed()
        self.optimizer.zero_gradients()

    def rewind(self, spikes: Spikes, loss: float) -> None:
        """The loss of this batch is a spike: take the weights and moments of a checkpoint that is old enough, and
        leave out the batches since. The step still counts as the next one, so what is saved and copied from now on is
        newer than all that was before. Raises Diverged if that was done too often already."""
        step, window = self.step + 1, spikes.config.window
        what = f"step {step}: the loss is {loss:.6g}, {loss / spikes.usual:.1f} times the median of the last {window}"
        self.optimizer.zero_gradients()
        if spikes.rewound():
            raise Diverged(f"{what}, and so it was {spikes.rewinds - 1} times shortly before; going back does not "
                           f"help: try a lower learning rate, or look at the data of these steps")
        choice = None
        if self.saver is not None and self.run_.checkpoint is not None:
            self.saver.wait()
            choice = resume.newest_that_verifies(
                self.run_.checkpoint, self.gang, self.identity, lambda text: self.warn("CheckpointDamaged", text),
                before=step - spikes.config.rewind)
        if choice is None or choice.path is None or choice.marker is None:
            self.record.leave_out(step, step)
            return self.warn("LossSpike", f"{what}; there is no checkpoint that is {spikes.config.rewind} steps old, "
                                          f"so only this batch is left out")
        resume.load(choice.path, self.state())
        self.take_over(choice.marker.training)
        self.record.leave_out(choice.marker.step + 1, step)
        return self.warn("LossSpike", f"{what}; back to the weights of step {choice.marker.step}, the batches since "
                                      f"are left out")

    def compare_ranks(self) -> None:
        """Name ranks that have been slower at their own work than the others for a minute."""
        assert self.stragglers is not None
        own, seconds = self.own_time.take()
        found = gather(self.gang, (own, self.model.mesh.coordinates["pipeline"], seconds, place(self.gang)))
        owns, stages, since, places = zip(*found, strict=True)
        for slow in self.stragglers.compare(owns, stages, since[0]):
            words = (f"rank {slow.rank} ({places[slow.rank]}) has needed {slow.own:.3f} s a step for its own work for "
                     f"a minute, the median is {slow.usual:.3f} s")
            self.warn("Straggler", words)
            if slow.rank == self.gang.rank and self.run_.replace_stragglers:
                self.suspect = f"straggler: {words}"

    def evaluate(self, steps: int) -> bool:
        """The mean loss over the first `steps` batches of the held-out data; the same ones every time. False if a
        drain came first: saving is what its time is for."""
        assert self.validation is not None
        self.model.train(False)
        total = torch.zeros((), dtype=torch.float64)
        for step in range(steps):
            first = step * self.batch_size
            part = self.model.evaluate_batch(self.micro_batches, partial(self.take, self.validation, first))
            total += part.double().cpu()
            if self.anybody_told_to_drain():
                self.model.train()
                say(self.gang, f"step {self.step}/{self.config.steps}: evaluation given up, told to save and stop")
                return False
        self.model.train()
        dist.all_reduce(total, group=self.gang.control)
        loss = float(total) / (steps * self.batch_size * self.config.data.sequence_length)
        say(self.gang, f"step {self.step}/{self.config.steps} evaluation loss {loss:.6f}")
        self.progress.update(evaluationLoss=round(loss, 6))
        return True

    def anybody_told_to_drain(self) -> bool:
        """Whether any rank was; every rank calls this at the same place."""
        told = torch.tensor([self.run_.told_to_drain()], dtype=torch.int32)
        dist.all_reduce(told, group=self.gang.control)
        return bool(told)

    def report_step(self, totals: Totals, seconds: float) -> None:
        """Tell the supervisor."""
        loss = round(totals.loss, 6) if totals.updated and math.isfinite(totals.loss) else None
        memory = self.memory
        kept = {} if memory is None else {"memoryStep": memory.memory_step, "protection": memory.protection,
                                          "memorySkipped": memory.rotation.skipped or None}
        self.progress.step(self.step, seconds, loss=loss, **kept)

    # ---- saving

    def save_due(self) -> bool:
        """Should a save begin after this step? Rank 0 decides, the step's all-reduce tells the others."""
        if self.saver is None:
            return False
        if self.saver.failures:
            return self.saver.retry_due()
        return (self.step + 1) // self.run_.every > self.save_begun // self.run_.every

    def save(self) -> None:
        """Start a save of this step in the background."""
        assert self.saver is not None
        started = time.monotonic()
        self.save_begun = self.step
        with self.progress.pulse.phase("save"), span(CHECKPOINT):
            self.saver.start(self.step, self.state(), self.counters())
        milliseconds = (time.monotonic() - started) * 1e3
        say(self.gang, f"step {self.step}: saving; training stood still for {milliseconds:.0f} ms")

    def save_last(self) -> None:
        """Save this step and wait until it is durable, with a few tries. After a drain the job may go on from an older
        checkpoint, at the end a failure is raised: OSError."""
        if self.saver is None:
            return
        self.saver.wait()
        for number in range(FINAL_TRIES):
            if self.saver.saved_step == self.step:
                return
            if number:
                time.sleep(2 ** (number - 1))  # for a full disk or a mount that comes back
            self.save()
            self.saver.wait()
        if self.saver.saved_step != self.step and self.step == self.config.steps:
            raise OSError(f"the last checkpoint, of step {self.step}, could not be saved in {FINAL_TRIES} tries")

    def committed(self, step: int) -> None:
        """On rank 0, in the saver's thread."""
        self.progress.update(durableStep=step)
        say(self.gang, f"checkpoint of step {step} is durable")

    def save_failed(self, step: int, reason: str) -> None:
        """On rank 0, in the saver's thread."""
        self.warn("CheckpointFailed", f"step {step} could not be saved, training goes on and will try again: {reason}")

    def warn(self, reason: str, text: str) -> None:
        """Tell log and supervisor."""
        say(self.gang, f"warning: {text}")
        self.progress.warn(reason, text)


def profile_folder(config: TrainConfig, run: Run) -> Path | None:
    """Where a profile goes. Raises ConfigError if one is asked for and there is no place."""
    if config.profile is None:
        return None
    if config.profile.folder is not None:
        return Path(config.profile.folder)
    if run.checkpoint is None:
        raise ConfigError("train.profile.folder is needed: without a checkpoint folder there is no place for a profile")
    return run.checkpoint / "profile"


def seed_model(seed: int, step: int, micro_batch: int, position: int) -> None:
    """Make what the model draws (dropout) a function of the run's place, not of the process's past."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}/{position}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def first_weights(model: ParallelModel, config: TrainConfig, gang: Gang) -> None:
    """What training begins with when there is no checkpoint."""
    model.place_experts(None)
    if config.model.path is not None:
        folder = Path(config.model.path)
        together(gang, lambda: weights.read(model, folder))
    else:
        weights.draw(model, config.seed)
