"""Copies of training state in memory: the file that holds one, when it may be overwritten, and the process that sends
it to other pods and outlives the ranks. Standard library only (docs/recovery.md)."""
