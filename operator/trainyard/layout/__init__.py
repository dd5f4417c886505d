"""The planner: which layout of a model over devices is legal, fits into memory and is fastest (docs/planner.md).

    work = of_job(spec)                 # in job.py; or of_train(train, ranks, per_node, hardware) without a job
    ranking = choose(work)              # every legal layout with its estimate, the fastest that fits first
    train = settle(train, work, ranking.best.layout)  # everything set, for the trainer

Pure arithmetic on pydantic types: no torch, nothing is read from a cluster or a disk.
"""

from trainyard.layout.choose import Ranking, choose
from trainyard.layout.hardware import HARDWARE, Hardware
from trainyard.layout.problems import InvalidLayout, LayoutDoesNotFit
from trainyard.layout.resolve import of_train, settle
from trainyard.layout.shape import ModelShape
from trainyard.layout.types import Estimate, Layout, Workload

__all__ = [
    "HARDWARE",
    "Estimate",
    "Hardware",
    "InvalidLayout",
    "Layout",
    "LayoutDoesNotFit",
    "ModelShape",
    "Ranking",
    "Workload",
    "choose",
    "of_train",
    "settle",
]
