"""Talking to the API server: raw JSON in and out, watch caches, leader election. Knows nothing of what a job needs."""
