"""`make chaos`: break a training job in every way that docs/recovery.md speaks of, and measure what comes of it."""
