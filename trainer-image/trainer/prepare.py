"""`python -m trainer.prepare`: tokenise text once, for any number of jobs. Killed and run again, it goes on."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from trainyard.api import EXIT_CONFIG
from trainyard.api.train import DataSource

from trainer import errors
from trainer.data import prepare, sources
from trainer.data.tokenizer import find
from trainer.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Prepare one source, or verify a folder. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare", description=__doc__)
    parser.add_argument("--input", help="a file, a folder or a glob pattern of text, JSONL or Parquet")
    parser.add_argument("--format", default="auto", choices=["auto", "text", "jsonl", "parquet"])
    parser.add_argument("--field", default="text", help="JSONL key or Parquet column of the text")
    parser.add_argument("--tokenizer", type=Path, help="Hugging Face folder, tokenizer.json or SentencePiece .model")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="compare a finished folder with its hashes")
    given = parser.parse_args(arguments)
    try:
        if given.verify:
            prepare.verify(given.verify)
            print(f"{given.verify} is as it was written")
            return 0
        if not (given.input and given.tokenizer and given.output):
            raise ConfigError("--input, --tokenizer and --output are needed (or --verify)")
        source = DataSource(path=given.input, format=given.format, field=given.field)
        files = sources.find(source, "--input")
        if not files.raw:
            raise ConfigError(f"--input: {given.input} is tokenised already (format {files.format}); use it as it is")
        find(given.tokenizer)
        started = time.monotonic()
        index = prepare.prepare(files, given.tokenizer, given.output, given.processes,
                                lambda text: print(text, flush=True))
        seconds = time.monotonic() - started
        print(f"{index.tokens} tokens in {len(index.shards)} shards, {files.bytes / 1e6 / seconds:.1f} MB/s")
        return 0
    except ConfigError as error:
        errors.report(error)
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
