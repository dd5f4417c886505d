"""What the planner has to say, as text."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.layout.choose import Ranking
from trainyard.layout.hardware import GB
from trainyard.layout.types import Estimate, Workload

WORDS = {
    "compute": "computation", "recompute": "recomputation", "shard": "sharding's communication",
    "tensor": "tensor parallel's communication", "context": "context parallel's communication",
    "expert": "tokens on their way to experts", "pipeline": "messages between stages", "bubble": "pipeline bubble",
    "optimizer": "optimizer step",
}  # fmt: skip


def sentence(each: Estimate) -> str:
    """A layout and its estimate in a line, for a status."""
    seconds = each.seconds
    parts = [f"computation {seconds.compute:.3g} s"]
    parts += [f"{WORDS[name]} {value:.3g} s" for name, value in seconds.items()
              if name != "compute" and value >= 0.01 * seconds.total]  # fmt: skip
    least = 0.01 * each.memory.total
    memory = ", ".join(f"{name} {value / GB:.3g}" for name, value in each.memory.items() if value >= least)
    return f"{each.layout}. Estimated {', '.join(parts)}; {memory} GB."


def why(each: Estimate, best: Estimate, room: float) -> str:
    """Why a layout lost to the best: what of its memory is too much, or what costs most more time."""
    if not each.fits:
        kind, most = max(each.memory.items(), key=lambda item: item[1])
        return f"needs {each.memory.total / GB:.1f} of {room / GB:.1f} GB, {most / GB:.1f} of them {kind}"
    theirs, ours = dict(each.seconds.items()), dict(best.seconds.items())
    name = max(theirs, key=lambda kind: theirs[kind] - ours[kind])
    more = theirs[name] - ours[name]
    if each.seconds.total <= best.seconds.total * 1.01:
        return "as fast, less simple"
    return f"{WORDS[name]} +{more:.3g} s"


def table(ranking: Ranking, rows: int = 10) -> str:
    """The ranked layouts, the best of every mesh: memory, time, and why each lost."""
    shown = ranking.by_mesh()
    best, room = shown[0], ranking.work.hardware.memory
    lines = [("", "layout", "GB", "s/step", "tokens/s/device", "comm.", "bubble", "why it lost")]
    for number, each in enumerate(shown[:rows], 1):
        fits = each.fits
        speed = tokens_per_second(ranking.work, each) / ranking.work.ranks if fits else 0
        lines.append((
            str(number), str(each.layout), f"{each.memory.total / GB:.1f}",
            f"{each.seconds.total:.3g}" if fits else "-", f"{speed:.0f}" if fits else "-",
            f"{each.seconds.communication / each.seconds.total:.1%}" if fits else "-",
            f"{each.seconds.bubble / each.seconds.total:.1%}" if fits else "-",
            "chosen" if each is best and fits else why(each, best, room)))  # fmt: skip
    text = columns(lines)
    return text if len(shown) <= rows else f"{text}\n... and {len(shown) - rows} more meshes"


def explained(each: Estimate, room: float) -> str:
    """Memory and time of one layout by kind."""
    total = each.memory.total
    lines = [("memory a device", "GB", "share")]
    lines += [(name, f"{value / GB:.3f}", f"{value / total:.1%}") for name, value in each.memory.items() if value]
    lines.append(("all", f"{total / GB:.3f}", f"of {room / GB:.1f} GB" if room else "of an unknown size"))
    whole = each.seconds.total
    text = columns(lines)
    if not each.fits:
        return text
    times = [("time a step", "s", "share")]
    times += [(WORDS[name], f"{value:.4g}", f"{value / whole:.1%}") for name, value in each.seconds.items() if value]
    return f"{text}\n\n{columns([*times, ('all', f'{whole:.4g}', '')])}"


def tokens_per_second(work: Workload, each: Estimate) -> float:
    """Over all ranks."""
    return work.batch * work.sequence / each.seconds.total


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows under each other, every column as wide as its widest cell."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
