"""Whole runs: to the end, killed, drained, on other numbers of ranks."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from train.gang import PUNCTUAL, Ended, Gang, train

LEARNT = 4.0  # loss after 30 steps; chance is ln 384 = 5.95


def steps_of(ended: Ended, first: int, last: int) -> list[str]:
    return [ended.losses[step] for step in range(first, last + 1)]


def test_undisturbed_run_learns_evaluates_exports(tmp_path: Path, config: dict[str, Any], corpus: Path) -> None:
    config["parallel"] = {"shard": 2}
    config["evaluate"] = {"every": 10, "steps": 2, "data": [{"path": str(corpus / "held-out.txt")}]}
    with Gang(tmp_path / "run", [config] * 2, checkpoint=tmp_path / "ck", fresh=True) as gang:
        ended = gang.wait()
        progress = gang.progress()
    assert ended.codes == [0, 0], ended.text
    assert sorted(ended.losses) == list(range(1, 31))
    assert float(ended.losses[30]) < LEARNT
    assert progress["step"] == progress["steps"] == progress["durableStep"] == 30
    assert (progress["data"], progress["shard"], progress["warnings"]) == (1, 2, [])
    assert progress["evaluationLoss"] < LEARNT
    assert progress["tokensPerSecond"] > 0
    assert ended.out[0].count("evaluation loss") == 3
    names = {path.name for path in (tmp_path / "ck").glob("step-*")}
    assert len(names) == 3, "the second is late if the first took long"
    assert {"step-10.g1", "step-30.g1"} <= names

    check_export(tmp_path / "ck" / "export")
    again = train(tmp_path / "again", config, checkpoint=tmp_path / "ck", generation="2")
    assert again.codes == [0, 0], again.text
    assert "exported already" in again.out[0]
    assert not again.losses


def check_export(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "And the king saw the city.\nAnd a prophet loved their fathers."
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    assert float(model(input_ids=tokens, labels=tokens).loss.detach()) < LEARNT


def test_killed_run_goes_on_to_the_same_digits(tmp_path: Path, config: dict[str, Any]) -> None:
    config["steps"] = 31
    config["microBatchSize"] = 2
    never = train(tmp_path / "never", config, checkpoint=tmp_path / "never-ck")
    assert never.codes == [0, 0], never.text
    with Gang(tmp_path / "first", [config] * 2, checkpoint=tmp_path / "ck", every=7) as gang:
        gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 7)
        killed = gang.kill()
    assert killed.codes == [-9, -9]
    resumed = train(tmp_path / "second", config, checkpoint=tmp_path / "ck", generation="2")
    assert resumed.codes == [0, 0], resumed.text
    first = min(resumed.losses)
    assert 8 <= first <= 29, resumed.text
    assert steps_of(resumed, first, 31) == steps_of(never, first, 31)


def test_drain_saves_at_one_step_and_exits_75(tmp_path: Path, config: dict[str, Any], corpus: Path) -> None:
    """In the middle of an evaluation that would take hours."""
    config["steps"] = 100_000
    endless = {**config, "evaluate": {"every": 4, "steps": 1 << 20, "data": [{"path": str(corpus / "held-out.txt")}]}}
    with Gang(tmp_path / "first", [endless] * 2, checkpoint=tmp_path / "ck", every=1000) as gang:
        gang.wait_for(lambda progress: progress.get("step", 0) >= 4)
        gang.drain.touch()
        drained = gang.wait(30)
        saved = gang.progress()["durableStep"]
    assert drained.codes == [75, 75], drained.text
    assert max(drained.losses) == saved == 4
    config["steps"] = saved + 3
    resumed = train(tmp_path / "second", config, checkpoint=tmp_path / "ck", generation="2")
    assert resumed.codes == [0, 0], resumed.text
    assert sorted(resumed.losses) == [saved + 1, saved + 2, saved + 3]


SLOW_DATA = """
import runpy, sys, time
from datetime import timedelta
from trainer import distributed
from trainer.data import batches
distributed.TIMEOUT = timedelta(seconds=3)
batches._prepare_missing = lambda *_: time.sleep(1000)
sys.argv = ["trainer"]
runpy.run_module("trainer", run_name="__main__")
"""


def test_tokenising_may_take_longer_than_a_collective_and_can_be_drained(tmp_path: Path,
                                                                         config: dict[str, Any]) -> None:
    config["data"]["cache"] = str(tmp_path / "cache")
    with Gang(tmp_path / "run", [config] * 2, checkpoint=tmp_path / "ck", program=["-c", SLOW_DATA]) as gang:
        deadline = time.monotonic() + 60
        while "waits while rank 0 prepares" not in (gang.folder / "out-1").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(5)  # longer than the collectives' timeout
        assert [process.poll() for process in gang.processes] == [None, None], gang.kill().text
        gang.drain.touch()
        drained = gang.wait(20)
    assert drained.codes == [75, 75], drained.text


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, dict[str, Any], Ended]:
    """A finished run of 2 ranks with checkpoints of steps 10 and 20, its config and its output."""
    folder = tmp_path_factory.mktemp("saved")
    config = {
        "model": {"config": {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
                             "num_attention_heads": 4, "max_position_embeddings": 64}},
        "data": {"sources": [{"path": str(corpus / "train.txt"), "weight": 2}, {"path": str(corpus / "held-out.txt")}],
                 "tokenizer": str(corpus / "tokenizer.json"), "sequenceLength": 32, "cache": str(corpus / "cache")},
        "steps": 24, "batchSize": 8, "export": False, "optimizer": {"learningRate": 3e-3},
    }
    ended = train(folder / "run", config, checkpoint=folder / "ck", program=("-c", PUNCTUAL))
    assert ended.codes == [0, 0], ended.text
    shutil.rmtree(folder / "ck" / "step-24.g1")
    return folder / "ck", config, ended


@pytest.mark.parametrize(("ranks", "parallel"), [(4, {"shard": 2}), (1, {})])
def test_other_number_of_ranks(tmp_path: Path, saved: tuple[Path, dict[str, Any], Ended], ranks: int,
                               parallel: dict[str, int]) -> None:
    source, config, before = saved
    shutil.copytree(source, tmp_path / "ck")
    resumed = train(tmp_path / "run", {**config, "parallel": parallel, "activationCheckpointing": "full"}, ranks,
                    checkpoint=tmp_path / "ck", generation="2")
    assert resumed.codes == [0] * ranks, resumed.text
    assert min(resumed.losses) == 21
    assert [float(loss) for loss in steps_of(resumed, 21, 24)] == pytest.approx(
        [float(loss) for loss in steps_of(before, 21, 24)], abs=2e-5)


def test_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, saved: tuple[Path, dict[str, Any], Ended]) -> None:
    source, config, before = saved
    checkpoint = tmp_path / "ck"
    shutil.copytree(source, checkpoint)
    victim = checkpoint / "step-20.g1" / "__1_0.distcp"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x40
    victim.write_bytes(content)
    partial = checkpoint / "step-22.g1"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"half of it")
    with Gang(tmp_path / "run", [config] * 2, checkpoint=checkpoint, generation="2", keep=1) as gang:
        ended = gang.wait()
        warnings = gang.progress()["warnings"]
    assert ended.codes == [0, 0], ended.text
    assert f"skipped step-20.g1: {victim} is damaged" in ended.out[0]
    assert "skipped step-22.g1" in ended.out[0]
    assert warnings[0]["reason"] == "CheckpointDamaged"
    assert steps_of(ended, 11, 24) == steps_of(before, 11, 24)
    # 24.g2 is the newest; 10.g1 stays because training was resumed from it
    assert {path.name for path in checkpoint.glob("step-*")} == {"step-24.g2", "step-10.g1"}


def test_checkpoint_of_another_model_is_a_configuration_error(tmp_path: Path,
                                                              saved: tuple[Path, dict[str, Any], Ended]) -> None:
    source, config, _ = saved
    shutil.copytree(source, tmp_path / "ck")
    other = json.loads(json.dumps(config))
    other["model"]["config"]["hidden_size"] = 32
    with Gang(tmp_path / "run", [other] * 2, checkpoint=tmp_path / "ck", generation="2") as gang:
        ended = gang.wait(60)
        reasons = [gang.reason(rank) for rank in range(2)]
    assert ended.codes == [78, 78], ended.text
    for rank in range(2):
        last = ended.err[rank].strip().splitlines()[-1]
        assert last == reasons[rank]
        assert "is of another model: " in last
        assert "hidden_size is 64 there and 32 in train.model" in last
        assert "Traceback" not in ended.err[rank]


def test_one_rank_without_the_data_ends_all(tmp_path: Path, config: dict[str, Any]) -> None:
    blind = json.loads(json.dumps(config))
    blind["data"]["sources"][0]["path"] = "/nowhere/train.txt"
    with Gang(tmp_path / "run", [config, blind], checkpoint=tmp_path / "ck") as gang:
        ended = gang.wait(60)
        assert gang.reason(0) == f"rank 1: {gang.reason(1)}"
        assert "train.data.sources[0].path: /nowhere/train.txt does not exist" in gang.reason(1)
    assert ended.codes == [78, 78], ended.text


def test_precisions_and_weights_from_a_folder(tmp_path: Path, saved: tuple[Path, dict[str, Any], Ended]) -> None:
    _, config, before = saved
    short = {**config, "steps": 4, "export": True, "optimizer": {"learningRate": 3e-3, "warmupSteps": 1}}
    first = {}
    for precision in ("bf16", "fp16"):
        ended = train(tmp_path / precision, {**short, "precision": precision}, checkpoint=tmp_path / f"ck-{precision}")
        assert ended.codes == [0, 0], ended.text
        first[precision] = float(ended.losses[1])
    assert first == pytest.approx(dict.fromkeys(first, float(before.losses[1])), abs=2e-2)
    weights = {**short, "model": {"path": str(tmp_path / "ck-bf16" / "export")}}
    ended = train(tmp_path / "from", weights, 1, checkpoint=None)
    assert ended.codes == [0], ended.text
    assert float(ended.losses[1]) < float(before.losses[1]) - 0.3
