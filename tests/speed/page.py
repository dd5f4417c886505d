"""docs/speed.md: its text is written by hand, the tables between markers are replaced."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from bench.__main__ import machine

TARGET = Path(__file__).resolve().parents[2] / "docs" / "speed.md"


def keep(part: str, table: str) -> None:
    """Replace the table of a part. Raises ValueError if the page has no place for it."""
    text = TARGET.read_text()
    stamp = f"`python -m speed {part}` on {datetime.now(UTC):%Y-%m-%d}: {machine()}."
    place = re.compile(rf"(<!-- {part} -->\n).*?(<!-- end -->)", re.DOTALL)
    new, count = place.subn(lambda found: f"{found[1]}{stamp}\n\n{table}\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"{TARGET} should have <!-- {part} --> and <!-- end --> once, found {count}")
    TARGET.write_text(new)
