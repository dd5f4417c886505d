"""From files to tokens: formats, packing, preparing, and what bad files get."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trainer.data import documents, prepare, sources, tokens
from trainer.data import tokenizer as tokenizers
from trainer.data.batches import Batches, Packed, check
from trainer.data.documents import Piece
from trainer.errors import ConfigError
from trainyard.api.train import DataSource


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer.json: 256 letters, <s> 256, </s> 257."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return path


def source(path: Path | str, **fields: object) -> DataSource:
    return DataSource.model_validate({"path": str(path), **fields})


def tokenise(path: Path, tokenizer: Path, output: Path, processes: int = 1, **fields: object) -> NDArray[np.int64]:
    files = sources.find(source(path, **fields), "data")
    prepare.prepare(files, tokenizer, output, processes, lambda text: None)
    stream = tokens.open_prepared(output)
    return stream.read(0, stream.tokens)


def texts(tokenizer: Path, ids: NDArray[np.int64]) -> list[str]:
    """Documents between <s> and </s>."""
    tool = tokenizers.open_tokenizer(tokenizer)
    found: list[str] = []
    held: list[int] = []
    for token in ids.tolist():
        if token == tool.bos:
            held = []
        elif token == tool.eos:
            found.append(tool.decode(held))
        else:
            held.append(token)
    return found


DOCUMENTS = ["In the beginning", "", "Zwei\nZeilen, ünïcode ∮", "last"]


def test_every_format_gives_the_same_documents(tmp_path: Path, tokenizer: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    records = "".join(json.dumps({"id": 1, "body": text}) + "\n" for text in DOCUMENTS)
    (tmp_path / "a.jsonl").write_text(records)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(records)
    parquet.write_table(pyarrow.table({"body": DOCUMENTS}), tmp_path / "c.parquet", row_group_size=2)
    for number, name in enumerate(["a.jsonl", "b.jsonl.gz", "c.parquet"]):
        ids = tokenise(tmp_path / name, tokenizer, tmp_path / f"out{number}", field="body")
        assert texts(tokenizer, ids) == DOCUMENTS, name
    (tmp_path / "d").mkdir()
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / "d" / f"{number}.txt").write_text(text)
    ids = tokenise(tmp_path / "d", tokenizer, tmp_path / "out-d")
    assert texts(tokenizer, ids) == [text for text in DOCUMENTS if text]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30), min_size=1,
                max_size=30), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_pieces_share_a_file_without_loss(tmp_path_factory: pytest.TempPathFactory, lines: list[str],
                                          size: int) -> None:
    path = tmp_path_factory.mktemp("pieces") / "text.txt"
    path.write_text("\n".join(lines))
    end = path.stat().st_size
    cuts = [(start, min(start + size, end)) for start in range(0, end, size)]
    parts = [part for start, stop in cuts
             for part in documents.read(Piece(str(path), "text", "text", start, stop, stop == end))]
    assert "".join(part.text for part in parts) == path.read_text()
    if end:
        assert [part.first for part in parts].count(True) == [part.last for part in parts].count(True) == 1


def test_processes_and_a_kill_change_nothing(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SMALLEST", 1000)
    (tmp_path / "a.txt").write_text("".join(f"line {number} of the text\n" for number in range(500)))
    whole = tokenise(tmp_path / "a.txt", tokenizer, tmp_path / "one")
    again = tokenise(tmp_path / "a.txt", tokenizer, tmp_path / "two", processes=2)
    assert np.array_equal(whole, again)
    # what a kill leaves: no index, one shard without its record, one cut short
    output = tmp_path / "one"
    (output / "index.json").unlink()
    (output / "shard-00003.json").unlink()
    cut = output / "shard-00005.bin"
    cut.write_bytes(cut.read_bytes()[:-2])
    kept = (output / "shard-00001.bin").stat().st_mtime_ns
    said: list[str] = []
    files = sources.find(source(tmp_path / "a.txt"), "data")
    prepare.prepare(files, tokenizer, output, 1, said.append)
    assert said[0].startswith("9 of 11 pieces are there")
    assert (output / "shard-00001.bin").stat().st_mtime_ns == kept
    stream = tokens.open_prepared(output)
    assert np.array_equal(stream.read(0, stream.tokens), whole)
    prepare.verify(output)


def test_prepared_folder_of_other_data_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    tokenise(tmp_path / "a.txt", tokenizer, tmp_path / "out")
    (tmp_path / "a.txt").write_text("another text")
    with pytest.raises(ConfigError, match="holds other data"):
        tokenise(tmp_path / "a.txt", tokenizer, tmp_path / "out")


def test_truncated_and_damaged_shards_are_seen(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("some text to be cut short")
    tokenise(tmp_path / "a.txt", tokenizer, tmp_path / "out")
    shard = tmp_path / "out" / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    shard.write_bytes(content[:-3])
    with pytest.raises(ConfigError, match=r"shard-00000\.bin should have \d+ bytes .* truncated"):
        tokens.open_prepared(tmp_path / "out")
    content[4] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        prepare.verify(tmp_path / "out")
    assert not prepare.Cache(tmp_path).ready(tmp_path / "nothing")


def write_megatron(stem: Path, rows: list[list[int]], code: int = 8) -> None:
    dtype = tokens.MEGATRON_TYPES[code]
    arrays = [np.asarray(row, dtype) for row in rows]
    stem.with_suffix(".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    lengths = np.asarray([len(row) for row in rows], "<i4")
    pointers = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(dtype).itemsize
    stem.with_suffix(".idx").write_bytes(
        tokens.MEGATRON_MAGIC + (1).to_bytes(8, "little") + bytes([code]) + len(rows).to_bytes(8, "little")
        + (len(rows) + 1).to_bytes(8, "little") + lengths.tobytes() + pointers.tobytes()
        + np.arange(len(rows) + 1, dtype="<i8").tobytes())


@pytest.mark.parametrize("code", [4, 8])
def test_megatron(tmp_path: Path, code: int) -> None:
    write_megatron(tmp_path / "set", [[1, 2, 3], [40000, 5], [6]], code)
    files = sources.find(source(tmp_path / "set.bin"), "data")
    assert (files.format, files.raw) == ("megatron", False)
    stream = tokens.open_stream(files)
    assert stream.read(0, stream.tokens).tolist() == [1, 2, 3, 40000, 5, 6]
    assert stream.read(2, 3).tolist() == [3, 40000, 5]
    assert stream.documents(0, 6).tolist() == [0, 0, 0, 1, 1, 2]
    assert stream.documents(4, 2).tolist() == [0, 1]
    (tmp_path / "set.bin").write_bytes(b"123")
    with pytest.raises(ConfigError, match="truncated"):
        tokens.open_stream(files)
    (tmp_path / "set.bin").unlink()
    with pytest.raises(ConfigError, match=r"set\.bin does not exist"):
        sources.find(source(tmp_path / "set.idx"), "data")


@given(lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4),
       place=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=60, deadline=None)
def test_documents_of_a_stretch(tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]],
                                place: tuple[float, float]) -> None:
    """Over shards, some of which begin in the middle of a document."""
    folder = tmp_path_factory.mktemp("stream")
    parts, begins, expected, number = [], [], [], 0
    for shard, sizes in enumerate(lengths):
        path = folder / f"{shard}.bin"
        path.write_bytes(bytes(2 * sum(sizes)))
        parts.append((path, sum(sizes)))
        starts = np.cumsum([0, *sizes[:-1]])[shard % 2:]  # every other shard goes on with the document before
        begins.append(starts.astype("<u8"))
        for at in range(sum(sizes)):
            number += at in starts
            expected.append(number)
    stream = tokens.Mapped(parts, "uint16", begins)
    start, stop = sorted(int(share * stream.tokens) for share in place)
    found = stream.documents(start, stop - start).tolist()
    assert found == [number - expected[start] for number in expected[start:stop]]


class Numbers:
    """A stream whose tokens are their own positions."""

    def __init__(self, count: int) -> None:
        self.tokens = count

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        assert 0 <= start <= start + count <= self.tokens
        return np.arange(start, start + count)

    def documents(self, start: int, count: int) -> NDArray[np.int64]:
        return np.zeros(count, dtype=np.int64)


@given(count=st.integers(2, 500), length=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_packing_makes_every_token_a_target_once(count: int, length: int) -> None:
    if count <= length:
        with pytest.raises(ConfigError, match="fewer than one sample"):
            Packed(Numbers(count), length, "data")
        return
    packed = Packed(Numbers(count), length, "data")
    targets = [token for sample in range(packed.samples) for token in packed[sample][1:].tolist()]
    assert targets == list(range(1, packed.samples * length + 1))
    assert count - 1 - len(targets) < length


def test_batches_shift_by_one_and_refuse_unknown_tokens() -> None:
    packed = [Packed(Numbers(101), 10, "data")]
    inputs, targets = Batches(packed, [1.0], 0, vocab_size=101).take(np.arange(4))
    assert inputs.shape == targets.shape == (4, 10)
    assert bool((targets == inputs + 1).all())
    with pytest.raises(ConfigError, match="data: the data has token 100, but the model's vocab_size is 100"):
        Batches(packed, [1.0], 0, vocab_size=100).take(np.arange(10))


@pytest.mark.parametrize(("make", "fields", "message"), [
    (lambda p: p, {}, "the folder .* is empty"),
    (lambda p: p / "missing.txt", {}, "does not exist"),
    (lambda p: p / "*.txt", {}, "matches no file"),
    (lambda p: _file(p / "a.xyz", "x"), {}, "holds no file with a known ending"),
    (lambda p: _file(p / "a.txt", ""), {}, r"a\.txt is empty"),
    (lambda p: p, {"format": "prepared"}, r"has no index\.json"),
])
def test_bad_paths(tmp_path: Path, make: object, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources.find(source(make(tmp_path), **fields), "train.data.sources[0]")  # type: ignore[operator]


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", b'{"text": "fine"}\n{"txt": "not"}\n', "the line at byte 17 should be an object with text in 'text'"),
    ("a.jsonl", b'{"text": \n', "the line at byte 0 is not JSON"),
    ("a.txt", b"fine\n\xff\xfe\n", "should be UTF-8, but the line at byte 5 is not"),
    ("a.parquet", b"PAR1 not", "as Parquet"),
    ("a.jsonl", b"\n\n", "no document with text"),
])
def test_bad_contents(tmp_path: Path, tokenizer: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        tokenise(tmp_path / name, tokenizer, tmp_path / "out")


def test_tokenizer_is_needed_and_must_be_one(tmp_path: Path) -> None:
    files = [sources.find(source(_file(tmp_path / "a.txt", "x")), "train.data.sources[0]")]
    with pytest.raises(ConfigError, match=r"train\.data\.tokenizer is needed"):
        check(files, None)
    with pytest.raises(ConfigError, match="does not exist"):
        tokenizers.open_tokenizer(tmp_path / "missing.model")
    with pytest.raises(ConfigError, match=r"cannot read .* as a SentencePiece model"):
        tokenizers.open_tokenizer(_file(tmp_path / "bad.model", "not one"))
    with pytest.raises(ConfigError, match=r"should hold tokenizer\.json or tokenizer\.model"):
        tokenizers.open_tokenizer(tmp_path)


def test_sentencepiece(tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=60, model_type="bpe",
        byte_fallback=False, minloglevel=2)
    tool = tokenizers.open_tokenizer(tmp_path / "spm.model")
    assert (tool.vocab_size, tool.bos, tool.eos) == (60, 1, 2)
    assert tool.decode(tool.encode(["the lazy fox"])[0]) == "the lazy fox"


def test_half_of_a_character_pair_is_replaced(tmp_path: Path, tokenizer: Path) -> None:
    """JSON can spell what no text can hold; tokenizers refuse it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab \\ud83d cd"}\n{"text": "\\ud83d\\ude00"}\n')
    (piece,) = documents.pieces(sources.find(source(path), "x"))
    assert [one.text for one in documents.read(piece)] == ["ab \ufffd cd", "\U0001f600"]
