"""No process ever holds the whole model: not when it is drawn, read or exported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import safe_open
from train.gang import Gang

RANKS = 4
MODEL = {"model_type": "llama", "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2752,
         "num_hidden_layers": 6, "num_attention_heads": 16, "max_position_embeddings": 128}
MEGABYTES = 352  # 4 bytes x 92.3 million parameters


def run(folder: Path, source: Path, output: Path, limit: int) -> list[int]:
    program = ["-m", "train.memory_rank", str(source), str(output), str(limit)]
    with Gang(folder, [{}] * RANKS, program=program) as gang:
        ended = gang.wait()
    print(ended.text)
    return ended.codes


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every tensor of a safetensors folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as content:
            for name in content.keys():  # noqa: SIM118  (not a dict)
                found[name] = hashlib.sha256(content.get_tensor(name).tobytes()).hexdigest()
    return found


def test_memory_limit(tmp_path: Path) -> None:
    drawn, shape_only = tmp_path / "drawn", tmp_path / "shape"
    shape_only.mkdir()
    (shape_only / "config.json").write_text(json.dumps(MODEL))
    limit = MEGABYTES * 6 // 10 << 20  # a quarter is its shard; files of 24 MB, tensors of 33 and threads come on top
    assert run(tmp_path / "draw", shape_only, drawn, limit) == [0] * RANKS
    size = sum(file.stat().st_size for file in drawn.glob("*.safetensors"))
    assert size >> 20 == MEGABYTES
    assert run(tmp_path / "read", drawn, tmp_path / "again", limit) == [0] * RANKS
    assert hashes(tmp_path / "again") == hashes(drawn)
    assert len(hashes(drawn)) == 6 * 9 + 3
    # the limit does bite: with half of it the same program fails
    assert run(tmp_path / "short", drawn, tmp_path / "never", limit // 8) != [0] * RANKS
