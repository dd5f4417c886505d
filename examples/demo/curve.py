"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw(points: Sequence[tuple[int, float]], killed_at: int | None, target: Path) -> Path:
    """Write the curve of (step, loss) points to a PNG file; `killed_at` is the step at which a worker was killed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1.5)
    if killed_at is not None:
        axes.axvline(killed_at, color="tab:red", linestyle="--", linewidth=1)
        axes.annotate("worker killed", (killed_at, axes.get_ylim()[1]), color="tab:red", rotation=90,
                      ha="right", va="top", fontsize=9)  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss", title="LLaMA2 over two nodes")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    pyplot.close(figure)
    return target
