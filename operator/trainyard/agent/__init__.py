"""The agent: one on every node with accelerators. It serves them to kubelet, watches their health and publishes
NodeDevices; it knows nothing of jobs."""
