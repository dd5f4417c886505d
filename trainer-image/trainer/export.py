"""At the end: a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads.

The tensors are laid out over safetensors files; each file has one rank that collects the others' slices of its tensors
and writes it, so no rank ever holds more than one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.data.tokenizer import HF_FILES, find
from trainer.distributed import Gang, gather
from trainer.errors import describe
from trainer.files import sum_file, sync_file, sync_folder, write_durably
from trainer.model.names import stored
from trainer.model.weights import local_slice
from trainer.parallel.model import ParallelModel

FOLDER = "export"
MARKER = "EXPORTED.json"
FILE_BYTES = 2 << 30  # of one safetensors file


def finished(folder: Path, step: int, model: dict[str, Any]) -> bool:
    """Is the model of this step there, whole?"""
    try:
        marker = json.loads((folder / MARKER).read_text())
        return bool(marker["step"] == step and marker["model"] == model
                    and all((folder / name).stat().st_size == size for name, size in marker["files"].items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write(model: ParallelModel, folder: Path, gang: Gang, dtype: torch.dtype, step: int, identity: dict[str, Any],
          tokenizer: Path | None, file_bytes: int = FILE_BYTES) -> None:
    """Write the folder; every rank calls this. Its marker comes last. Raises OSError on every rank if one failed."""
    _all(gang, lambda: _begin(folder) if gang.first else None)
    files = _share_out(model.shapes, dtype, file_bytes)
    problem = _write_tensors(model, files, folder, gang, dtype)
    _all(gang, lambda: problem)
    _all(gang, lambda: _finish(model, folder, files, dtype, step, identity, tokenizer) if gang.first else None)


def _all(gang: Gang, work: Any) -> None:
    """Do `work` on each rank; raise on all if it raised, or returned a problem, on any."""
    try:
        problem = work()
    except Exception as error:
        problem = describe(error)
    problems = [f"rank {rank}: {text}" for rank, text in enumerate(gather(gang, problem)) if text]
    if problems:
        raise OSError(f"cannot write the export: {problems[0]}")


def _begin(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()


@dataclass(frozen=True)
class _File:
    """One safetensors file and what goes into it."""

    name: str
    tensors: tuple[str, ...]


def _share_out(shapes: Mapping[str, torch.Size], dtype: torch.dtype, file_bytes: int) -> list[_File]:
    """Tensors in order, as many a file as fit."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = shape.numel() * dtype.itemsize
        if groups[-1] and filled + size > file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [_File("model.safetensors", tuple(groups[0]))]
    return [_File(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
            for number, group in enumerate(groups, 1)]


def _write_tensors(model: ParallelModel, files: list[_File], folder: Path, gang: Gang,
                   dtype: torch.dtype) -> str | None:
    """Collect and write every file; returns what went wrong on this rank, after taking part to the end."""
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    slices = gather(gang, {name: local_slice(parameter)[1] for name, parameter in parameters.items()})
    problem: str | None = None
    for number, file in enumerate(files):
        owner = number % gang.world_size
        content: dict[str, torch.Tensor] = {}
        for name in file.tensors:
            whole = _collect(parameters.get(name), model.shapes[name], [part.get(name) for part in slices], owner,
                             gang, dtype)
            if whole is not None:
                content.update(_pieces(name, whole, model.places_in(name)))
        if gang.rank != owner or problem:
            continue
        try:
            save_file(content, folder / file.name, metadata={"format": "pt"})
            (folder / file.name).chmod(0o644)  # safetensors makes it 0600; others are to read it
            sync_file(folder / file.name)
        except Exception as error:
            problem = describe(error)
    return problem


def _names(parameter: str, shapes: Mapping[str, torch.Size]) -> list[str]:
    return [piece.name for piece in stored(parameter, shapes[parameter])]


def _pieces(name: str, whole: torch.Tensor, places: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """The tensors that a parameter is in files: itself, or each expert's matrices."""
    return {piece.name: whole if piece.expert is None else
            whole[piece.expert, piece.first_row: piece.first_row + piece.shape[0]].clone()
            for piece in stored(name, whole.shape, places)}


def _collect(parameter: nn.Parameter | None, shape: torch.Size, slices: list[tuple[slice, ...] | None], owner: int,
             gang: Gang, dtype: torch.dtype) -> torch.Tensor | None:
    """The whole tensor at `owner`, None at the others. Of replicas the lowest rank sends; ranks of other pipeline
    stages have no slice of it."""
    senders: dict[tuple[tuple[int, int], ...], int] = {}
    for rank, where in enumerate(slices):
        if where is not None and all(part.stop > part.start for part in where):
            senders.setdefault(tuple((part.start, part.stop) for part in where), rank)
    whole = torch.empty(shape, dtype=dtype) if gang.rank == owner else None
    for spans, rank in senders.items():
        where = tuple(slice(*span) for span in spans)
        if rank == gang.rank and parameter is not None:
            mine = local_slice(parameter)[0].to(device="cpu", dtype=dtype).contiguous()
            if whole is not None:
                whole[where] = mine
            else:
                dist.send(mine, owner, group=gang.control)
        elif whole is not None:
            part = torch.empty([one.stop - one.start for one in where], dtype=dtype)
            dist.recv(part, rank, group=gang.control)
            whole[where] = part
    return whole


def _finish(model: ParallelModel, folder: Path, files: list[_File], dtype: torch.dtype, step: int,
            identity: dict[str, Any], tokenizer: Path | None) -> None:
    """Everything that is not a tensor, then the marker."""
    if len(files) > 1:
        total = model.parameter_count * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": {name: one.name for one in files
                                                                   for parameter in one.tensors
                                                                   for name in _names(parameter, model.shapes)}}
        write_durably(folder / "model.safetensors.index.json", json.dumps(index, indent=2).encode())
    _write_configs(model.config, folder, dtype)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, folder)
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARKER]
    for name in names:
        sync_file(folder / name)
    marker = {"step": step, "model": identity, "files": {name: sum_file(folder / name).bytes for name in names}}
    write_durably(folder / MARKER, json.dumps(marker, indent=1).encode())
    sync_folder(folder)


def _write_configs(config: Any, folder: Path, dtype: torch.dtype) -> None:
    from transformers import GenerationConfig

    config.architectures = ["MixtralForCausalLM" if config.model_type == "mixtral" else "LlamaForCausalLM"]
    config.dtype = dtype
    config.use_cache = True
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id).save_pretrained(folder)


def _write_tokenizer(tokenizer: Path, folder: Path) -> None:
    """The tokenizer's files as they are, under the names that transformers looks for."""
    file = find(tokenizer)
    if tokenizer.is_dir():
        for name in HF_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
        return
    if file.suffix == ".json":
        shutil.copyfile(file, folder / "tokenizer.json")
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        shutil.copyfile(file, folder / "tokenizer.model")
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_durably(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode())
    if file.suffix != ".json":
        _convert_sentencepiece(folder)


def _convert_sentencepiece(folder: Path) -> None:
    """Add a tokenizer.json, so that loading the folder takes neither sentencepiece nor protobuf."""
    try:
        from transformers import LlamaTokenizer

        LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    except Exception as error:  # not of Llama's kind; tokenizer.model is there all the same
        print(f"warning: no tokenizer.json could be made of tokenizer.model ({describe(error)})", flush=True)
