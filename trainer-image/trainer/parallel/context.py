"""Context parallelism: every rank of a context group holds a part of each sequence.

Ulysses (https://arxiv.org/abs/2309.14509) exchanges heads for positions before attention and back after it. The ring
(https://arxiv.org/abs/2310.01889) passes keys and values round; its chunks are dealt in zig-zag order, rank r of R
holding chunks r and 2R-1-r of 2R, so that the causal triangle is shared out evenly. Together each ring rank's part is
split again over the ranks of a Ulysses group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from trainer.parallel.mesh import Mesh


class Context:
    """This rank's part of every sequence, and attention over the whole of it."""

    def __init__(self, mesh: Mesh) -> None:
        self._ring, self._ring_size, self._ring_rank = mesh.ring_group, mesh.layout.ring, mesh.ring_rank
        self._ulysses, self._ulysses_size = mesh.ulysses_group, mesh.layout.ulysses or 1
        self._ulysses_rank = mesh.ulysses_rank

    def local(self, whole: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This rank's part of a tensor that has the whole sequence in `dim`."""
        return self.of_ring(whole, dim).chunk(self._ulysses_size, dim)[self._ulysses_rank].contiguous()

    def of_ring(self, whole: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The part of this rank's Ulysses group: two chunks of a ring, or everything."""
        if self._ring_size == 1:
            return whole
        chunks = whole.chunk(2 * self._ring_size, dim)
        return torch.cat((chunks[self._ring_rank], chunks[-1 - self._ring_rank]), dim)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float,
               documents: torch.Tensor | None, whole: Any) -> torch.Tensor:
        """Causal attention. query: (batch, heads, part of the sequence, width); key, value: likewise with a divisor of
        the heads; documents: (batch, whole sequence); `whole`: attention for who has all positions. Returns the shape
        of query."""
        if self._ulysses_size > 1:
            key, value = (_enough_heads(tensor, query.shape[1], self._ulysses_size) for tensor in (key, value))
            query, key, value = (_exchange(tensor, self._ulysses, self._ulysses_size, split=1, join=2)
                                 for tensor in (query, key, value))
        if self._ring_size > 1:
            result = _Ring.apply(query, key, value, scale, documents, self)
        else:
            result = whole(query, key, value, scale, dropout, documents)
        if self._ulysses_size > 1:
            result = _exchange(result, self._ulysses, self._ulysses_size, split=2, join=1)
        return result

    # ---- what the ring needs

    def rounds(self) -> list[int]:
        """Whose keys and values are here, round by round: first our own."""
        return [(self._ring_rank - number) % self._ring_size for number in range(self._ring_size)]

    def visible(self, source: int, length: int) -> tuple[slice, slice, bool]:
        """Which of our `length` positions see which of `source`'s, and whether the causal order matters inside."""
        half = length // 2
        if source == self._ring_rank:
            return slice(0, length), slice(0, length), True
        if source < self._ring_rank:
            return slice(0, length), slice(0, half), False
        return slice(half, length), slice(0, length), False

    def mask(self, documents: torch.Tensor | None, source: int, rows: slice, columns: slice,
             causal: bool) -> torch.Tensor | None:
        """True where the two positions are of one document, and in order: (batch, 1, rows, columns)."""
        if documents is None:
            return None
        chunks = documents.chunk(2 * self._ring_size, 1)
        theirs = torch.cat((chunks[source], chunks[-1 - source]), 1)[:, None, columns]
        same = self.of_ring(documents)[:, rows, None] == theirs
        return (same.tril() if causal else same)[:, None]

    def pass_on(self, tensor: torch.Tensor) -> tuple[list[Any], torch.Tensor]:
        """Begin to send to the next rank of the ring and to receive from the one before. Returns what to wait for and
        where it will be."""
        tensor = tensor.contiguous()
        received = torch.empty_like(tensor)
        after = dist.get_global_rank(self._ring, (self._ring_rank + 1) % self._ring_size)
        before = dist.get_global_rank(self._ring, (self._ring_rank - 1) % self._ring_size)
        return dist.batch_isend_irecv([dist.P2POp(dist.isend, tensor, after, self._ring),
                                       dist.P2POp(dist.irecv, received, before, self._ring)]), received


def _enough_heads(tensor: torch.Tensor, heads: int, ranks: int) -> torch.Tensor:
    """Key or value heads copied until there is the same whole number for every rank."""
    own = tensor.shape[1]
    if own % ranks == 0:
        return tensor
    return tensor.repeat_interleave(ranks // own if ranks % own == 0 else heads // own, 1)


def _exchange(tensor: torch.Tensor, group: Any, ranks: int, split: int, join: int) -> torch.Tensor:
    """All-to-all: give each rank its part of dimension `split`, get theirs of ours, put together in `join`."""
    result: torch.Tensor = _Exchange.apply(tensor, group, ranks, split, join)
    return result


class _Exchange(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Its gradient is the way back. Not torch's functional collectives: their buffers are freed by whoever is last of
    two threads, and attention waits for the result anyway."""

    @staticmethod
    def forward(saved: Any, tensor: torch.Tensor, group: Any, ranks: int, split: int, join: int) -> torch.Tensor:
        saved.way_back = group, ranks, join, split
        return _swap(tensor, group, ranks, split, join)

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _swap(gradients[0], *saved.way_back), None, None, None, None


def _swap(tensor: torch.Tensor, group: Any, ranks: int, split: int, join: int) -> torch.Tensor:
    parts = torch.stack(tensor.chunk(ranks, split)).contiguous()  # stack may keep a channels-last order of memory
    received = torch.empty(parts.shape, dtype=parts.dtype, device=parts.device)
    dist.all_to_all_single(received, parts, group=group, async_op=True).wait()  # see waits.py
    return torch.cat(received.unbind(0), join)


class _Ring(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Attention block by block; results are put together by their log-sum-exp. Keys and values are on their way to the
    next rank while attention to them is computed."""

    @staticmethod
    def forward(saved: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None,
                documents: torch.Tensor | None, context: Context) -> torch.Tensor:
        scale = scale or query.shape[-1] ** -0.5
        pair = torch.stack((key, value))
        result = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        log_sum = torch.full(query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device)
        rounds = context.rounds()
        for number, source in enumerate(rounds):
            works, following = context.pass_on(pair) if number + 1 < len(rounds) else ([], pair)
            rows, columns, causal = context.visible(source, query.shape[2])
            mask = context.mask(documents, source, rows, columns, causal)
            part, part_log_sum = _block(query[:, :, rows], pair[:, :, :, columns], scale, causal, mask)
            joint = torch.logaddexp(log_sum[:, :, rows], part_log_sum)
            result[:, :, rows] *= (log_sum[:, :, rows] - joint).exp()[..., None]
            result[:, :, rows] += part * (part_log_sum - joint).exp()[..., None]
            log_sum[:, :, rows] = joint
            for work in works:
                work.wait()
            pair = following
        output = result.to(query.dtype)
        saved.save_for_backward(query, key, value, output, log_sum)
        saved.rest = scale, documents, context
        return output

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum = saved.saved_tensors
        scale, documents, context = saved.rest
        pair = torch.stack((key, value))
        of_query = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        of_pair = torch.zeros(pair.shape, dtype=torch.float32, device=query.device)
        coming: list[Any] = []
        rounds = context.rounds()
        for number, source in enumerate(rounds):
            works, following = context.pass_on(pair) if number + 1 < len(rounds) else ([], pair)
            rows, columns, causal = context.visible(source, query.shape[2])
            mask = context.mask(documents, source, rows, columns, causal)
            one, both = _block_backward(gradients[0][:, :, rows], query[:, :, rows], pair[:, :, :, columns],
                                        output[:, :, rows], log_sum[:, :, rows], scale, causal, mask)
            of_query[:, :, rows] += one
            for work in coming:
                work.wait()
            of_pair[:, :, :, columns] += both
            coming, of_pair = context.pass_on(of_pair)  # after the last round it is home
            for work in works:
                work.wait()
            pair = following
        for work in coming:
            work.wait()
        return (of_query.to(query.dtype), of_pair[0].to(key.dtype), of_pair[1].to(value.dtype), None, None, None)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _block(query: torch.Tensor, pair: torch.Tensor, scale: float, causal: bool,
           mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one block and its log-sum-exp (batch, heads, rows) in fp32; -inf for a row that sees nothing."""
    repeats = query.shape[1] // pair.shape[2]
    key, value = pair.repeat_interleave(repeats, 2) if repeats > 1 else pair
    if query.device.type == "cpu":
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal and mask is None, attn_mask=_additive(mask, query.dtype), scale=scale)
        log_sum = log_sum.float()
        if mask is not None:  # the kernel says 0 for such a row
            log_sum = log_sum.masked_fill(~mask.any(-1), -torch.inf)
        return output, log_sum
    scores = _scores(query, key, scale, causal, mask)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum[..., None]).exp().nan_to_num(0.0).to(value.dtype) @ value, log_sum


def _block_backward(gradient: torch.Tensor, query: torch.Tensor, pair: torch.Tensor, output: torch.Tensor,
                    log_sum: torch.Tensor, scale: float, causal: bool,
                    mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a block's query and of its pair of key and value, given output and log-sum-exp of all blocks."""
    repeats = query.shape[1] // pair.shape[2]
    key, value = pair.repeat_interleave(repeats, 2) if repeats > 1 else pair
    if query.device.type == "cpu":
        of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.contiguous(), query, key, value, output, log_sum, 0.0, causal and mask is None,
            attn_mask=_additive(mask, query.dtype), scale=scale)
    else:
        chances = (_scores(query, key, scale, causal, mask) - log_sum[..., None]).exp()
        wide = gradient.float()
        of_value = chances.transpose(-1, -2) @ wide
        inner = wide @ value.float().transpose(-1, -2) - (wide * output.float()).sum(-1, keepdim=True)
        of_scores = chances * inner * scale
        of_query, of_key = of_scores @ key.float(), of_scores.transpose(-1, -2) @ query.float()
    both = torch.stack((of_key, of_value))
    return of_query, both.unflatten(2, (-1, repeats)).sum(3) if repeats > 1 else both


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, causal: bool,
            mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled products in fp32, for devices whose fused attention does not return its log-sum-exp to us."""
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)
