"""Mixtures whose router has favourites: what is told of it, and what it does to training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from train.gang import Ended, train
from trainer.model import build, names, shape, weights
from trainyard.api.train import ModelConfig

FAVOURITES = (9.0, 6.0, 0.0, -40.0)  # how much the router likes each expert, whatever the token
BUSY = re.compile(r"tokens/s \d+ experts (\S+) x, layer (\d+) (\S+) x, its expert (\d+) got (\S+)%(.*)$", re.MULTILINE)


@pytest.fixture
def skewed(tmp_path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A mixture of 4 experts, 2 a token, whose router sends nearly all tokens to the first two and none to the last."""
    fields = {**config["model"]["config"], "num_hidden_layers": 2, "num_local_experts": 4, "router_aux_loss_coef": 0.0}
    model = ModelConfig.model_validate({"family": "mixtral", "size": "tiny", "config": fields})
    drawn: Any = build.on_meta(build.complete(shape.fields(model)))
    weights.materialise(drawn, torch.device("cpu"))
    weights.draw(drawn, 5)
    with torch.no_grad():
        drawn.model.embed_tokens.weight[:, 0] = 0.5  # the part of a hidden state that all tokens have
        for layer in drawn.model.layers:
            layer.mlp.gate.weight[:, 0] = torch.tensor(FAVOURITES)
    folder = tmp_path / "weights"
    folder.mkdir()
    tensors = {}
    for name, whole in drawn.named_parameters():
        for piece in names.stored(name, whole.shape):
            part = whole if piece.expert is None else whole[piece.expert, piece.first_row:][:piece.shape[0]]
            tensors[piece.name] = part.detach().clone()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(shape.fields(model)))
    return {**config, "model": {"family": "mixtral", "path": str(folder)}, "batchSize": 4, "steps": 4,
            "optimizer": {"learningRate": 1e-4, "minLearningRate": 1e-4, "warmupSteps": 1}, "export": False}


def busy(ended: Ended) -> list[tuple[str, ...]]:
    """Of each step: imbalance, worst layer, its imbalance, its busiest expert, its share, and what else is said."""
    return BUSY.findall(ended.out[0])


def test_balance_is_told(tmp_path: Path, skewed: dict[str, Any]) -> None:
    """Where one expert gets nothing and one rank nearly everything, training goes on and says so."""
    skewed |= {"parallel": {"shard": 2, "expert": 2}, "profile": {"first": 2, "steps": 2}}
    ended = train(tmp_path / "run", skewed, 2, checkpoint=tmp_path / "ck")
    assert ended.codes == [0, 0], ended.text
    told = busy(ended)
    assert len(told) == 4, ended.text
    for imbalance, _, worst, expert, share, rest in told:
        assert 1.5 < float(imbalance) <= float(worst) <= 2.0
        assert expert in "01"
        assert 35 < float(share) <= 50
        assert rest.endswith("got nothing")
    page = (tmp_path / "ck" / "profile" / "summary.md").read_text()
    assert re.search(r"^Experts: the busiest rank of a layer got [12]\.\d\d times the mean", page, re.MULTILINE), page


def test_dropped_tokens_are_told_but_none_in_evaluation(tmp_path: Path, skewed: dict[str, Any], corpus: Path) -> None:
    skewed |= {"parallel": {"shard": 2, "expert": 2}, "steps": 2,
               "evaluate": {"every": 1, "steps": 1, "data": [{"path": str(corpus / "held-out.txt")}]}}
    limited = {**skewed, "experts": {"capacityFactor": 1.0}}
    limited["optimizer"] = skewed["optimizer"] = {"learningRate": 1e-12, "minLearningRate": 1e-12, "warmupSteps": 1}
    free, cut = train(tmp_path / "free", skewed, 2), train(tmp_path / "cut", limited, 2)
    assert free.codes == cut.codes == [0, 0], cut.text
    for *_, share, rest in busy(cut):
        assert 25 <= float(share) <= 50
        dropped = re.search(r", dropped (\S+)%$", rest)
        assert dropped is not None
        assert 30 < float(dropped[1]) <= 50  # two of four experts are wanted by nearly all
    assert all("dropped" not in rest for *_, rest in busy(free))
    assert free.losses != cut.losses
    evaluations = [[line for line in one.out[0].splitlines() if "evaluation loss" in line] for one in (free, cut)]
    assert evaluations[0] == evaluations[1]


MOVES = re.compile(r"^step (\d+): (\d+) experts moved in \S+ s; the busiest rank of a layer got (\S+) times the mean, "
                   r"now it would be (\S+)$", re.MULTILINE)


@pytest.mark.parametrize(("ranks", "parallel", "fields"), [
    (2, {"shard": 2, "expert": 2}, {}),
    (4, {"shard": 4, "expert": 2, "zero": 2}, {"optimizer": {"offload": True}}),  # FSDP2 cuts what a rank has
    (4, {"pipeline": 2, "tensor": 2, "expert": 2}, {}),
])
def test_moved_experts_train_as_if_they_had_stayed(tmp_path: Path, skewed: dict[str, Any], corpus: Path, ranks: int,
                                                   parallel: dict[str, Any], fields: dict[str, Any]) -> None:
    """To the last digit; and what is exported is the same."""
    skewed |= {"parallel": parallel, "steps": 6, "export": True,
               "evaluate": {"every": 3, "steps": 1, "data": [{"path": str(corpus / "held-out.txt")}]}}
    skewed["optimizer"] |= {"learningRate": 3e-3, "minLearningRate": 3e-3, **fields.get("optimizer", {})}
    moving = {**skewed, "experts": {"moveEvery": 3}}
    stayed = train(tmp_path / "stayed", skewed, ranks, checkpoint=tmp_path / "stayed-ck")
    moved = train(tmp_path / "moved", moving, ranks, checkpoint=tmp_path / "moved-ck")
    assert stayed.codes == moved.codes == [0] * ranks, moved.text
    (step, count, before, after), *_ = MOVES.findall(moved.out[0])
    assert (step, count) == ("3", "4")  # two of each layer change places
    assert float(before) > 1.8
    assert float(after) < 1.3
    assert [float(told[0]) < 1.4 for told in busy(moved)] == [False] * 3 + [True] * 3
    assert moved.losses == stayed.losses
    assert [line for line in moved.out[0].splitlines() if "evaluation" in line] == [
        line for line in stayed.out[0].splitlines() if "evaluation" in line]
    ours, theirs = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("moved-ck", "stayed-ck"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs | ours)
