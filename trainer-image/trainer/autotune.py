"""`train.autotune`: at the first start of a job the few layouts that the planner thinks best are measured, and training
goes on with the fastest (docs/planner.md)."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from supervisor.failures import is_consequence
from trainyard.api.train import TrainConfig
from trainyard.layout import autotune
from trainyard.layout.autotune import Candidate, Measured
from trainyard.layout.table import columns

from trainer import planned, tuning
from trainer.checkpoint import resume
from trainer.config import Run
from trainer.data.batches import Batches
from trainer.distributed import Gang, gather, say, tell_all
from trainer.errors import Drained, describe, one_line
from trainer.inject import Injection
from trainer.progress import Progress
from trainer.trial import Build, Trial, groups, take_down
from trainer.tuning import Record

PATIENCE = timedelta(seconds=120)  # with ranks that cannot be told that another one's layout has failed


@dataclass(frozen=True)
class Tuning:
    """What is known about the job's layout when its ranks start."""

    config: TrainConfig  # with the layout that is in use until something is measured
    record: Record | None = None  # None: the job does not want it
    measures: bool = False


def recall(config: TrainConfig, run: Run, gang: Gang) -> Tuning:
    """The layout that was chosen in an earlier generation, made fit for the size of this gang; or whether to measure:
    only before the first checkpoint, and only in a full gang."""
    if not run.candidates:
        return Tuning(config)
    names = tuple(each.name for each in run.candidates)
    record = tuning.newest(gather(gang, tuning.recall(run, names)), names)
    ranks = run.rank.world_size
    if record.tuned:
        chosen = next(each.train for each in run.candidates if each.name == record.tuned)
        fitting = chosen if planned.is_settled(chosen, ranks) else planned.resized(chosen, ranks)
        return Tuning(fitting or config, record)
    root = run.checkpoint
    if not planned.is_settled(run.candidates[0].train, ranks):
        return Tuning(config, record)
    if root is not None and tell_all(gang, lambda: resume.newest_marked(root)) is not None:
        say(gang, "layouts are not measured: the job has a checkpoint already")
        return Tuning(config, record)
    return Tuning(config, record.begun(), True)


def tell(record: Record | None, candidates: Sequence[Candidate], progress: Progress) -> None:
    """Report the choice, so that the operator remembers it."""
    if record is None or not record.tuned:
        return
    words = {each.name: each.words for each in candidates}
    rows = [{"name": row.name, "layout": words.get(row.name, ""),
             **({"problem": row.problem} if row.seconds is None else {"secondsPerStep": round(row.seconds, 4)})}
            for row in record.rows]
    progress.update(tuned=record.tuned, **({"measured": rows} if rows else {}))


class Autotune:
    """Measures the candidates one after the other."""

    def __init__(self, known: Tuning, run: Run, gang: Gang, build: Build, training: Batches,
                 progress: Progress) -> None:
        assert known.record is not None
        self.record: Record = known.record
        self.run_, self.gang = run, gang
        self.build, self.training, self.progress = build, training, progress
        self.faults = Injection.read(run.inject).layouts
        self.warned = False

    def choose(self) -> TrainConfig:
        """The configuration with the fastest layout; the first, if none could be measured. Raises Drained."""
        candidates = self.run_.candidates
        out = self.record.left_out()
        if self.record.starts > tuning.STARTS:
            rows = [Measured(each.name, None, out.get(each.name, "not measured")) for each in candidates]
            name = next((each.name for each in candidates if each.name not in out), candidates[0].name)
            self._warn(f"layouts were not measured to the end in {tuning.STARTS} starts: the planner's order decides")
        else:
            rows = [self._row(number, each, out.get(each.name)) for number, each in enumerate(candidates, 1)]
            found = autotune.winner(rows)
            name = found or candidates[0].name
            if found is None:
                self._warn("none of the layouts could be measured: the planner's choice is taken")
        self._keep(self.record.chosen(rows, name))
        say(self.gang, table(candidates, rows, name))
        return next(each.train for each in candidates if each.name == name)

    def _row(self, number: int, candidate: Candidate, left_out: str | None) -> Measured:
        if left_out is not None:
            return Measured(candidate.name, None, left_out)
        self._keep(replace(self.record, at=candidate.name))
        words = f"autotune {number}/{len(self.run_.candidates)}"
        say(self.gang, f"{words}: {candidate.words}")
        with self.progress.activity("autotune", words):
            seconds, problem = self._measure(number, candidate)
        if seconds is None:
            self.record = replace(self.record, problems={**self.record.problems, candidate.name: problem})
        self._keep(replace(self.record, at=""))
        return Measured(candidate.name, seconds, problem)

    def _measure(self, number: int, candidate: Candidate) -> tuple[float | None, str]:
        """Seconds a step of the slowest rank, or why it failed on any: the same answer on every rank."""
        before = groups()
        trial: Trial | None = None
        mine, problem, parts = None, "", []
        drained = False
        try:
            trial = Trial(candidate.train, self.run_, self.gang, self.build, self.training,
                          [fault for fault in self.faults if fault.number == number])
            parts = trial.parts()
            mine = trial.measure()
        except Drained:
            drained = True
        except Exception as error:  # whatever it is, another layout may do
            problem = describe(error)
            traceback.clear_frames(error.__traceback__)  # they hold the model
        trial = None
        if problem:
            self._close(before, True)
        answers = self._meet(candidate, (mine, problem))
        if not problem:
            self._close(before, any(text for _, text in answers))
        self._check_gone(parts)
        if drained:
            self._keep(replace(self.record, at="", starts=self.record.starts - 1))
            raise Drained
        return _agreed(answers)

    def _close(self, before: Sequence[Any], failed: bool) -> None:
        for name in take_down(before, failed, self.gang.device):
            self.progress.pulse.leave_out(name)  # where its ranks stood says nothing about a later hang

    def _meet(self, candidate: Candidate, mine: tuple[float | None, str]) -> list[tuple[float | None, str]]:
        """Everybody's answer, once everybody has one. Where a failure of this rank cannot be told to others that wait
        for it, or has left the gang's own groups out of step, only another start helps: RuntimeError."""
        problem = mine[1]
        try:
            dist.monitored_barrier(group=self.gang.saving, timeout=PATIENCE)
        except RuntimeError as error:
            if not problem or is_consequence(problem):  # in words by which the supervisor knows a consequence
                raise RuntimeError(f"layout {candidate.words}: gloo failed, another rank is lost or waits: "
                                   f"{one_line(problem or error, 200)}") from error
            self._give_up(candidate, problem)
            raise RuntimeError(f"layout {candidate.words}: {problem}; the others did not follow in "
                               f"{PATIENCE.seconds} s") from error
        everybody: list[Any] = [None] * self.gang.world_size
        dist.all_gather_object(everybody, (*mine, _sequence()), group=self.gang.saving)
        if len({sequence for _, _, sequence in everybody}) > 1:
            problem = _agreed([(seconds, text) for seconds, text, _ in everybody])[1]
            self._give_up(candidate, problem)
            raise RuntimeError(f"layout {candidate.words}: {problem}; the ranks are out of step and start again")
        return [(seconds, text) for seconds, text, _ in everybody]

    def _give_up(self, candidate: Candidate, problem: str) -> None:
        """Leave it out at the next start, if it is to blame."""
        if not is_consequence(problem):
            self._keep(replace(self.record, problems={**self.record.problems, candidate.name: problem}))

    def _check_gone(self, parts: list[Any]) -> None:
        left = sum(size for part, size in parts if part() is not None)
        if left:
            self._warn(f"{left / 2**20:.1f} MiB of a layout that was measured could not be given back")

    def _keep(self, record: Record) -> None:
        self.record = record
        problem = tuning.keep(self.run_, record)
        if problem and not self.warned:
            self.warned = True
            self._warn(problem)

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", flush=True)
        self.progress.warn("Autotune", text)


def _agreed(answers: Sequence[tuple[float | None, str]]) -> tuple[float | None, str]:
    """The slowest rank's time; or the problem of a rank that was not merely left waiting by another."""
    problems = [(is_consequence(text), rank, text) for rank, (_, text) in enumerate(answers) if text]
    if problems:
        _, rank, text = min(problems)
        return None, one_line(f"rank {rank}: {text}", 256)
    return max(seconds for seconds, _ in answers if seconds is not None), ""


def _sequence() -> int:
    """Collectives that this rank has begun in the group of all ranks; 0 where its backend does not count them."""
    try:
        return int(dist.group.WORLD._get_sequence_number_for_group())
    except RuntimeError:
        return 0


def table(candidates: Sequence[Candidate], rows: Sequence[Measured], name: str) -> str:
    """Estimate against measurement, for the log."""
    lines = [("layout", "estimated s/step", "measured s/step", "")]
    for candidate, row in zip(candidates, rows, strict=True):
        measured = "-" if row.seconds is None else f"{row.seconds:.4g}"
        lines.append((candidate.words, f"{candidate.seconds:.3g}", measured,
                      "chosen" if row.name == name else row.problem))
    return columns(lines)
