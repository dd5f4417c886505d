"""The one error that users of the package see."""

from __future__ import annotations


class ClusterError(Exception):
    """Something the user can act on: the message says what was expected, what was found and what to do."""
