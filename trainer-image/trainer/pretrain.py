"""The training run, from top to bottom: check, connect, data, model, resume, steps, save, export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from trainyard.api import EXIT_DRAINED
from trainyard.api.train import TrainConfig

from trainer import allocator, autotune, export
from trainer import config as configs
from trainer.config import Run
from trainer.data import batches as data
from trainer.data import sources, tokenizer
from trainer.data.batches import Batches
from trainer.distributed import Gang, connect, gather, on_cpu, say, together
from trainer.errors import ConfigError, Drained, describe
from trainer.loop import Loop
from trainer.model import build, shape, weights
from trainer.optimizer import AdamW
from trainer.parallel import compiled
from trainer.parallel import layout as layouts
from trainer.parallel.apply import parallelize
from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import ParallelModel
from trainer.precision import DTYPES, Precision, choose, flush_denormals
from trainer.progress import Progress
from trainer.pulse import Pulse, count_collectives
from trainer.regroup import COLLECTIVES, Regroup, why_not


def pretrain(config: TrainConfig, run: Run, regroup: Regroup) -> int:
    """Train as configured. Returns the exit code: 0 at the end, 75 after a drain. Raises ConfigError. When the gang is
    lost and `regroup` says so, called again in the same process."""
    flush_denormals()
    if on_cpu():
        allocator.keep_freed_memory(torch.get_num_threads())
    count_collectives()
    pulse = Pulse(run.pulse)
    regroup.ends.callback(pulse.close)
    regroup.before_groups()
    gang = connect(run.rank, problem_of_this_pod(config, run))
    pulse.leave_out(gang.saving.group_name)
    tuned = autotune.recall(config, run, gang)
    config = tuned.config
    fields = shape.fields(config.model)
    layout = layouts.fit(configs.layout(config, run.rank.world_size), fields, config.data.sequence_length)
    batch_size = configs.batch_size(config, layout, run.resized)
    identity = shape.identity(fields)
    progress = Progress(run.progress, pulse, steps=config.steps, **layout.fields())
    progress.note("connectedAt")
    autotune.tell(tuned.record, run.candidates, progress)
    if already_exported(config, run, gang, identity):
        say(gang, f"the model of step {config.steps} is exported already, nothing to do")
        progress.update(step=config.steps, durableStep=config.steps)
        return 0

    precision = choose(config.precision, gang.device)
    try:
        training, validation = open_data(config, run, gang, fields["vocab_size"])
        say(gang, f"data: {training.samples} samples of {config.data.sequence_length} tokens")
        if tuned.measures:
            config, layout = measured(tuned, run, gang, fields, precision, training, progress)
            batch_size = configs.batch_size(config, layout, run.resized)
    except Drained:
        say(gang, "told to stop while data was being prepared; what is finished will be used again")
        return EXIT_DRAINED
    model = parallel_model(config, gang, layout, fields, precision)
    optimizer = AdamW(model, config.optimizer)
    say(gang, f"model: {model.parameter_count / 1e6:.1f} million parameters, {precision}, {layout} on "
              f"{gang.device.type}")

    loop = Loop(config, run, gang, model, optimizer, training, validation, batch_size, precision, progress, identity)
    regroup.ends.callback(loop.close)
    regroup.ready(why_not(config, layout, gang.device), gang.device, loop.busy)
    loop.resume()
    allocator.give_back()
    progress.note("restoredAt")
    drained = loop.run()
    if drained:
        return EXIT_DRAINED
    if config.export and run.checkpoint is not None:
        started = time.monotonic()
        token_path = Path(config.data.tokenizer) if config.data.tokenizer else None
        folder = run.checkpoint / export.FOLDER
        with progress.activity("export"):
            export.write(model, folder, gang, DTYPES[precision], config.steps, identity, token_path)
        say(gang, f"exported to {folder} in {time.monotonic() - started:.1f} s")
    return 0


def problem_of_this_pod(config: TrainConfig, run: Run) -> str | None:
    """What is wrong with the files that this pod sees, in one line; the others may see them otherwise."""
    try:
        fields = shape.fields(config.model)
        shape.check_sequence(fields, config.data.sequence_length)
        layouts.fit(configs.layout(config, run.rank.world_size), fields, config.data.sequence_length)
        if config.model.path is not None:
            weights.check_folder(Path(config.model.path))
        found = sources.find_all(config.data.sources, "train.data.sources")
        if config.evaluate is not None:
            found += sources.find_all(config.evaluate.data, "train.evaluate.data")
        data.check(found, config.data.tokenizer)
        if config.data.tokenizer is not None:
            tokenizer.find(Path(config.data.tokenizer))
        if run.checkpoint is not None and run.checkpoint.exists() and not run.checkpoint.is_dir():
            raise ConfigError(f"the checkpoint folder {run.checkpoint} should be a folder, found a file")
    except ConfigError as error:
        return describe(error)
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"
    return None


def measured(known: autotune.Tuning, run: Run, gang: Gang, fields: dict[str, Any], precision: Precision,
             training: Batches, progress: Progress) -> tuple[TrainConfig, Layout]:
    """The configuration with the layout that proves to be the fastest. Raises Drained."""
    def fitted(config: TrainConfig) -> Layout:
        return layouts.fit(configs.layout(config, gang.world_size), fields, config.data.sequence_length)

    def build(config: TrainConfig) -> ParallelModel:
        backend = COLLECTIVES[gang.device.type]
        return parallel_model(config, gang, fitted(config), fields, precision, backend)

    search = autotune.Autotune(known, run, gang, build, training, progress)
    config = search.choose()
    layout = fitted(config)
    progress.update(**layout.fields())
    autotune.tell(search.record, run.candidates, progress)
    return config, layout


def already_exported(config: TrainConfig, run: Run, gang: Gang, identity: dict[str, Any]) -> bool:
    """Did an earlier run of this job reach its end? Then there is nothing to train."""
    if run.checkpoint is None or not config.export:
        return False
    return all(gather(gang, export.finished(run.checkpoint / export.FOLDER, config.steps, identity)))


def open_data(config: TrainConfig, run: Run, gang: Gang, vocab_size: int) -> tuple[Batches, Batches | None]:
    """Training and validation samples; text is tokenised first if nobody has done it yet."""
    cache = Path(config.data.cache) if config.data.cache else run.checkpoint / "data" if run.checkpoint else None
    token_path = Path(config.data.tokenizer) if config.data.tokenizer else None
    threads = torch.get_num_threads() * run.rank.local_world_size

    def tokenised(given: list[Any], where: str) -> list[sources.Files]:
        return data.open_all(sources.find_all(given, where), token_path, cache, gang, threads,
                             run.rank.local_world_size, run.told_to_drain)

    train_files = tokenised(config.data.sources, "train.data.sources")
    held_out = tokenised(config.evaluate.data, "train.evaluate.data") if config.evaluate else []

    def batches(files: list[sources.Files]) -> Batches:
        return data.batches(files, config.data.sequence_length, config.seed, vocab_size)

    return together(gang, lambda: (batches(train_files), batches(held_out) if held_out else None))


def parallel_model(config: TrainConfig, gang: Gang, layout: Layout, fields: dict[str, Any],
                   precision: Precision, own_groups: str = "") -> ParallelModel:
    """The model, spread over the ranks before it has any weights, so that none ever holds it whole. Its parameters hold
    nothing of meaning yet: a checkpoint or first_weights() fills them. `own_groups`: see Mesh."""
    complete = build.complete(fields)
    mesh = Mesh(layout, gang.device, gang.rank, own_groups)
    why_not = compiled.problem(gang.device, layout, fields["model_type"],
                               config.activation_checkpointing) if config.compile else None
    if why_not is not None:
        say(gang, f"warning: train.compile: {why_not}")
    model = parallelize(lambda: build.on_meta(complete), mesh, precision, config.activation_checkpointing,
                        config.compile and why_not is None,
                        config.experts.capacity_factor if config.experts else None)
    build.give_storage(model, gang.device)
    return model
