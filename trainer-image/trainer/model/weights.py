"""First weights of a sharded model: drawn, or read from a Hugging Face folder. Each rank touches its slices alone.

A drawn number depends on the seed, the parameter's name and the number's place in the whole tensor, never on the
layout: any number of ranks starts from the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainer.errors import ConfigError, one_line
from trainer.model.names import Stored, stored

BLOCK = 1 << 16  # numbers that one generator state draws; a slice begins and ends inside a block


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give every parameter of a meta model storage for its local shard. Tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                storage: Any = torch.empty(local.shape, dtype=local.dtype, device=device)
                if isinstance(parameter, DTensor):
                    storage = DTensor(storage, parameter._spec, requires_grad=False)
                made[id(parameter)] = nn.Parameter(storage, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]


def local_slice(parameter: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """This rank's part of a parameter, as plain tensor that shares its storage, and where it is in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), tuple(slice(0, size) for size in parameter.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh,
                                                           parameter.placements)
    where = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
    return parameter.detach().to_local(), where


def draw(model: Any, seed: int) -> None:
    """Random first weights, distributed as Llama's: normal with the config's initializer_range for linear layers and
    embeddings, one for norms, zero for biases."""
    spread = float(model.config.initializer_range)
    norms = {id(p) for m in model.modules() if type(m).__name__.endswith("RMSNorm") for p in m.parameters(False)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local, where = local_slice(parameter)
            if id(parameter) in norms:
                local.fill_(1.0)
            elif name.endswith(".bias"):
                local.zero_()
            elif local.numel():
                fill_normal(local, where, tuple(parameter.shape), spread, f"{seed}/{name}")


def fill_normal(local: torch.Tensor, where: tuple[slice, ...], shape: tuple[int, ...], spread: float,
                key: str, begin: int = 0) -> None:
    """Fill `local`, the part `where` of a tensor of `shape`, with the normal numbers that `key` stands for, from the
    number `begin` on.

    Stacked matrices are drawn one by one. Runs of whole rows (of all dimensions but the first) are drawn block by
    block; a shard of another dimension draws its rows whole and keeps its part."""
    row = prod(shape[1:])
    if len(shape) > 2:
        for place, number in enumerate(range(where[0].start, where[0].stop)):
            fill_normal(local[place], where[1:], shape[1:], spread, key, begin + number * row)
        return
    rows = where[0] if where else slice(0, 1)
    whole = all(part == slice(0, size) for part, size in zip(where[1:], shape[1:], strict=True))
    step = max(1, (BLOCK * 16) // max(row, 1))
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        numbers = torch.cat(list(_normals(key, begin + start * row, begin + stop * row))).view(stop - start, *shape[1:])
        part = numbers if whole else numbers[(slice(None), *where[1:])]
        target = local[start - rows.start: stop - rows.start] if where else local
        target.copy_((part * spread).view(target.shape))


def _normals(key: str, start: int, stop: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator()
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        numbers = torch.randn(BLOCK, generator=generator)
        first = block * BLOCK
        yield numbers[max(start - first, 0): min(stop - first, BLOCK)]


def check_folder(folder: Path) -> dict[str, Path]:
    """Where each tensor of a Hugging Face folder is. Raises ConfigError if there are no safetensors weights."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    try:
        if index.exists():
            names = json.loads(index.read_text())["weight_map"]
            return {name: folder / file for name, file in names.items()}
        if single.exists():
            from safetensors import safe_open

            with safe_open(single, framework="pt") as content:
                return dict.fromkeys(content.keys(), single)
    except Exception as error:  # a file of the user's that we cannot read, for whatever reason
        raise ConfigError(f"cannot read the weights in {folder}: {one_line(error, 400)}") from None
    raise ConfigError(f"train.model.path should hold safetensors weights, but {folder} has neither {single.name} nor "
                      f"{index.name}")


def read(model: Any, folder: Path) -> None:
    """Read each parameter's local slice from a Hugging Face folder, converting the type. Raises ConfigError."""
    from safetensors import safe_open

    files = check_folder(folder)
    by_file: dict[Path, list[tuple[Stored, torch.Tensor]]] = {}
    missing = []
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        pieces = [Stored(name, tuple(parameter.shape))] if name in files else stored(name, parameter.shape)
        missing += [piece.name for piece in pieces if piece.name not in files]
        for piece in pieces:
            by_file.setdefault(files.get(piece.name, folder), []).append((piece, parameter))
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    for file, wanted in by_file.items():
        try:
            with safe_open(file, framework="pt") as content, torch.no_grad():
                for piece, parameter in wanted:
                    _read_one(content, file, piece, parameter)
        except ConfigError:
            raise
        except Exception as error:  # missing, truncated, not safetensors: all are mistakes in the user's files
            raise ConfigError(f"cannot read the weights {file}: {one_line(error, 400)}") from None


def _read_one(content: Any, file: Path, piece: Stored, parameter: torch.Tensor) -> None:
    found = content.get_slice(piece.name)
    if tuple(found.get_shape()) != piece.shape:
        raise ConfigError(f"{file}: {piece.name} should have the shape {piece.shape} by train.model, found "
                          f"{tuple(found.get_shape())}")
    local, where = local_slice(parameter)
    if not local.numel():
        return
    if piece.expert is None:
        local.copy_(found[where])
        return
    experts, rows, columns = where
    first, stop = max(rows.start, piece.first_row), min(rows.stop, piece.first_row + piece.shape[0])
    if experts.start <= piece.expert < experts.stop and first < stop:
        target = local[piece.expert - experts.start, first - rows.start: stop - rows.start]
        target.copy_(found[first - piece.first_row: stop - piece.first_row, columns])
