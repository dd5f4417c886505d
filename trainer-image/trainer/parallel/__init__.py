"""How the model and its work are spread over the ranks (docs/parallel.md). The model knows nothing of it.

    layout.py     the numbers, completed and checked; no torch
    mesh.py       the ranks' groups, and this rank's place in them
    apply.py      parallelize(): everything that is done to a model, in order
    tensor.py     each matrix shared by the ranks of a tensor group
    context.py    each sequence shared: Ulysses, ring and both; attention.py calls it
    attention.py  the attention that transformers' models are given
    recompute.py  activation checkpointing
    experts.py    the experts of a mixture, shared out; and the loss that keeps them evenly busy
    compiled.py   torch.compile block by block
    single.py     a rank that shares its parameters with nobody
    shard.py      FSDP2 and how gradients are accumulated under it
    pipeline.py   stages, their split and schedules
    loss.py       head and cross entropy, of the whole vocabulary or one that is spread over ranks
    model.py      a batch goes forward and backward through this rank's part
"""
