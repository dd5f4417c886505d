"""The command that tokenises, killed in the middle and run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from train.conftest import write_text
from train.gang import ROOT
from trainer.data import prepare, tokens


def command(corpus: Path, text: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.prepare", "--input", str(text), "--tokenizer", str(corpus / "tokenizer.json"),
         "--output", str(output), "--processes", "2"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer-image"})


def test_killed_and_run_again(tmp_path: Path, corpus: Path) -> None:
    text = tmp_path / "text.txt"
    write_text(text, 280_000, 3)  # two pieces of 4 MB and a small one
    with command(corpus, text, tmp_path / "killed") as first:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("shard-*.json")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polled: another program writes it
        first.kill()
    assert not (tmp_path / "killed" / "index.json").exists()
    with command(corpus, text, tmp_path / "killed") as second:
        said, _ = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "pieces are there already" in said
    with command(corpus, text, tmp_path / "whole") as undisturbed:
        undisturbed.communicate(timeout=240)
    assert tokens.read_index(tmp_path / "killed") == tokens.read_index(tmp_path / "whole")
    prepare.verify(tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "index.json").read_text())["documents"] == 1
