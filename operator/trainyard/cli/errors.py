"""What ends a command."""

from __future__ import annotations


class Refused(Exception):
    """The command cannot be done; the text says what was expected, what was found and what to do."""
