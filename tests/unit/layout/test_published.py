"""One efficiency a device explains what was published, also runs that it was not fitted to."""

from __future__ import annotations

from unit.layout.published import leave_one_out, table


def test_leave_one_out() -> None:
    ratios = {f"{run.name} {run.device} {run.source} {run.samples}": said / real
              for run, _, real, said in leave_one_out()}
    off = {name: max(ratio, 1 / ratio) for name, ratio in ratios.items()}
    print(table())
    assert max(off.values()) <= 1.3, off
