"""The running operator: queue, reconcile, health and metrics. The only place that imports kopf (in `jobs.py`)."""
