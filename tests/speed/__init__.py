"""How fast the trainer is: against its ceiling, Hugging Face Trainer and Accelerate, side by side (docs/speed.md)."""
