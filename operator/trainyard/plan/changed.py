"""What pods are made from was changed although the job is not suspended; nothing follows from that but a word."""

from __future__ import annotations

from trainyard.plan.turn import Turn


def changed(turn: Turn) -> Turn:
    """Accepted=False SpecChanged while the job goes on as admitted; the end of a suspension admits it anew."""
    if not is_changed(turn) or (turn.spec.suspend and not turn.snap.pods):
        return turn
    message = (
        "numNodes, devices, template, train or command were changed while the job was not suspended; it goes on with "
        "what was admitted. Put the change back, or suspend the job, wait for Suspended and resume it."
    )
    return turn.judge("Accepted", "False", "SpecChanged", message)


def is_changed(turn: Turn) -> bool:
    """Whether the spec differs from what was admitted."""
    admitted, now = turn.status.admitted_hash, turn.snap.admitted_hash
    return turn.snap.spec is not None and bool(admitted and now) and admitted != now
