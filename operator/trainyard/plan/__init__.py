"""What to do about one job: a snapshot of the world in; actions, the new status and when to look again out.

Pure: no I/O, no clock but `Snapshot.now`. Each policy is a file of its own; `plan.plan` is the chain that says in which
order a job is judged.
"""

from trainyard.plan.chain import CHAIN, plan

__all__ = ["CHAIN", "plan"]
