"""Durable checkpoints in torch's distributed format: folders `step-N.gG`, complete once their marker is there."""
