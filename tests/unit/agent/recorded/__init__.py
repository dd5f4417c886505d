"""Outputs of the driver's tools."""

from __future__ import annotations

from pathlib import Path


def recorded(name: str) -> str:
    """One output, without the comment that says where its format is from."""
    lines = (Path(__file__).parent / name).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))
