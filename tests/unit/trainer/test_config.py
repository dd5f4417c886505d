"""Configuration, shapes, and how a rank says what is wrong."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer import config, errors
from trainer.errors import ConfigError
from trainer.model import shape
from trainyard.api.train import ModelConfig, TrainConfig

TRAIN: dict[str, Any] = {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/data"}]}, "steps": 10}


def train(**fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({**TRAIN, **fields})


@pytest.mark.parametrize(("name", "text"), [
    ("a.json", json.dumps(TRAIN)),
    ("a.yaml", "model: {size: tiny}\ndata: {sources: [{path: /data}]}\nsteps: 10\n"),
    ("job.yaml", "kind: TrainingJob\nspec:\n  train: {model: {size: tiny}, data: {sources: [{path: /data}]}, "
                 "steps: 10}"),
])
def test_forms_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert config.read(tmp_path / name) == train()


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is not valid JSON"),
    ("[]", "should hold the fields of spec.train, found list"),
    (json.dumps({**TRAIN, "stepz": 1}), "train.stepz: Extra inputs are not permitted, found 1"),
    (json.dumps({**TRAIN, "steps": 0}), "train.steps: Input should be greater than or equal to 1, found 0"),
])
def test_bad_files_are_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.read(tmp_path / "a.json")
    assert message in errors.describe(raised.value)
    assert "\n" not in errors.describe(raised.value)


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(TRAIN))
    environment = {"TRAINYARD_TRAIN_CONFIG": str(file), "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1",
                   "LOCAL_WORLD_SIZE": "2", "TRAINYARD_CHECKPOINT": "/ck", "TRAINYARD_CHECKPOINT_EVERY": "7",
                   "TRAINYARD_GENERATION": "3.1", "TRAINYARD_DRAIN": "/run/drain"}
    _, run = config.load([], environment)
    assert (run.rank.rank, run.rank.local_rank, run.rank.world_size, run.rank.local_world_size) == (3, 1, 4, 2)
    assert (run.checkpoint, run.every, run.keep, run.generation) == (Path("/ck"), 7, 3, "3.1")
    assert (run.drain, run.progress) == (Path("/run/drain"), None)
    with pytest.raises(ConfigError, match="RANK should be a whole number, found 'x'"):
        config.load([], {**environment, "RANK": "x"})
    with pytest.raises(ConfigError, match="no configuration"):
        config.load([], {})


# Parameters of the published models: 6,738,415,616 / 13,015,864,320 / 68,976,648,192
@pytest.mark.parametrize(("size", "millions"), [("7b", 6738.415616), ("13b", 13015.86432), ("70b", 68976.648192)])
def test_published_shapes(size: str, millions: float) -> None:
    fields = shape.fields(ModelConfig.model_validate({"size": size}))
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    kv = fields["num_key_value_heads"] * hidden // fields["num_attention_heads"]
    block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    assert (fields["num_hidden_layers"] * block + 2 * fields["vocab_size"] * hidden + hidden) / 1e6 == millions


def test_model_fields(tmp_path: Path) -> None:
    fields = shape.fields(ModelConfig.model_validate({"size": "tiny", "config": {"hidden_size": 64}}))
    assert (fields["hidden_size"], fields["num_hidden_layers"]) == (64, 6)
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        shape.fields(ModelConfig.model_validate({"path": str(tmp_path)}))
    with pytest.raises(ConfigError, match=r"model_type 'llama' .* found 'gpt2'"):
        shape.fields(ModelConfig.model_validate({"config": {"model_type": "gpt2"}}))
    with pytest.raises(ConfigError, match=r"model_type 'mixtral' \(family mixtral\), found 'llama'"):
        shape.fields(ModelConfig.model_validate({"family": "mixtral", "config": {"model_type": "llama"}}))
    with pytest.raises(ConfigError, match="num_experts_per_tok should be at most num_local_experts, 2, found 3"):
        shape.fields(ModelConfig.model_validate({"family": "mixtral", "size": "tiny", "config": {
            "num_local_experts": 2, "num_experts_per_tok": 3}}))
    with pytest.raises(ConfigError, match="sliding_window should be null"):
        shape.fields(ModelConfig.model_validate({"family": "mixtral", "size": "8x7b",
                                                 "config": {"sliding_window": 4096}}))
    with pytest.raises(ConfigError, match="hidden_size should be a whole number of at least 1, found None"):
        shape.fields(ModelConfig.model_validate({"config": {"num_hidden_layers": 1}}))
    with pytest.raises(ConfigError, match="num_key_value_heads should divide num_attention_heads, 4, found 3"):
        shape.fields(ModelConfig.model_validate({"size": "tiny", "config": {"num_key_value_heads": 3}}))
    with pytest.raises(ConfigError, match=r"sequenceLength should be at most .* 4096, found 5000"):
        shape.check_sequence(fields, 5000)


def test_identity_ignores_how_it_was_written() -> None:
    short = shape.fields(ModelConfig.model_validate({"size": "tiny"}))
    long = {**short, "head_dim": 32, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "max_position_embeddings": 128, "torch_dtype": "float16"}
    del long["rope_theta"]
    assert shape.identity(short) == shape.identity(long)
    assert shape.identity(short) != shape.identity({**short, "rope_theta": 5e5})


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "deep" / "error.json"))
    errors.report(ConfigError("expected this,\nfound that"))
    assert capsys.readouterr().err == "expected this, found that\n"
    written = json.loads((tmp_path / "deep" / "error.json").read_text())["message"]
    assert written["message"] == "expected this, found that"
    assert set(written["extraInfo"]) == {"py_callstack", "timestamp"}
    assert written["extraInfo"]["py_callstack"] == "expected this, found that"
    errors.report(ValueError("broken"))
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == "ValueError: broken"


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    (tmp_path / "a.json").write_text(json.dumps({**TRAIN, "batchSize": 3, "parallel": {"shard": 2}}))
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainer", "--config", str(tmp_path / "a.json")],
        env={"RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True,
        timeout=120, check=False)
    assert ended.returncode == 78
    assert ended.stderr.splitlines()[-1].startswith("train.batchSize: 3 does not divide")
    assert " torch\n" not in ended.stderr


def test_what_this_pod_may_not_read_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import pretrain
    from trainer.config import load

    (tmp_path / "text.txt").write_text("words")
    content = {"model": {"size": "tiny"}, "steps": 1, "data": {
        "sources": [{"path": str(tmp_path / "text.txt")}], "tokenizer": "/vault/tokenizer.json", "sequenceLength": 32}}
    (tmp_path / "train.json").write_text(json.dumps(content))
    train, run = load(["--config", str(tmp_path / "train.json")], {})

    def locked(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("trainer.data.tokenizer.Path.is_dir",
                        lambda path: locked(path) if str(path).startswith("/vault") else os.path.isdir(path))
    assert pretrain.problem_of_this_pod(train, run) == "cannot read /vault/tokenizer.json: Permission denied"
