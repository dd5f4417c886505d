"""Gangs of thousands of pods on simulated nodes (KWOK): how fast they come up, and what the operator takes for it."""
