"""Copies of training state in memory: the file that holds one, when it may be overwritten, and the process that sends
it to other pods and outlives the ranks. Standard library only (docs/recovery.md)."""

ALIVE = "alive"  # file in the copier's folder: written as long as it runs
GONE = "copier.gone"  # the supervisor's: there will be no other copier, ranks need not wait for one
