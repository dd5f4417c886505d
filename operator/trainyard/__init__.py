"""Trainyard: a Kubernetes operator that trains models on gangs of accelerator pods and keeps them training."""

__version__ = "0.1.0"
