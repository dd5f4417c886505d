"""PID 1 of every training pod: starts, watches, stops and restarts its ranks as the World says (docs/supervisor.md).

Standard library only, Python 3.9 or newer: it also runs in images that know nothing of Trainyard.
"""
