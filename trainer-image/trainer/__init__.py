"""Trainyard's trainer: pretraining and full finetuning of causal language models with FSDP2.

`python -m trainer` is one rank; Trainyard's supervisor or torchrun starts one for every device. Reading order:
`pretrain.py` is the whole run from top to bottom, `loop.py` its steps, the modules beside them are their parts.
"""
