"""Head and loss as one function, against torch's own in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from trainer.parallel import loss

ROWS, WIDTH, VOCABULARY = 21, 16, 100


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [1, 1024, 1 << 25])  # a row, 10 rows, all rows at a time
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, dtype: Any, close: float, chunk: int,
                            scale: float) -> None:
    monkeypatch.setattr(loss, "HEAD_CHUNK", {True: chunk, False: chunk})
    monkeypatch.setattr(loss, "SOFTMAX_CHUNK", 300)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, ROWS // 3, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (3, ROWS // 3), generator=draw)
    targets[0, 3] = targets[2, 0] = -1  # padding

    total = loss.head_loss_sum(hidden, weight, targets, 0.5)
    (total * scale).backward()
    found = [one.grad.float() for one in (hidden, weight)]
    hidden.grad = weight.grad = None
    logits = hidden.float() @ weight.to(dtype).float().t()
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    (expected * 0.5 * scale).backward()

    total, expected = total.detach(), expected.detach()
    assert float(total) == pytest.approx(float(expected), rel=close)
    for one, right in zip(found, (hidden.grad, weight.grad), strict=True):
        assert float((one - right.float()).abs().max()) <= close * float(right.abs().max())
    with torch.no_grad():
        assert float(loss.head_loss_sum(hidden, weight, targets, 0.5)) == pytest.approx(float(total))


class Largest(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed here
    """Notes the most fp32 numbers of any result that has the whole vocabulary."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operator, forward and backward."""
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else (result,):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32 and one.shape[-1:] == (VOCABULARY,) \
                    and one.shape[0] != WIDTH:  # that would be the weight
                self.numbers = max(self.numbers, one.numel())
        return result


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1000), (torch.bfloat16, 300)])
def test_the_fp32_logits_of_a_batch_never_exist(monkeypatch: pytest.MonkeyPatch, dtype: Any, most: int) -> None:
    monkeypatch.setattr(loss, "HEAD_CHUNK", {True: 1000, False: 1000})
    monkeypatch.setattr(loss, "SOFTMAX_CHUNK", 300)
    hidden = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    with Largest() as seen:
        loss.head_loss_sum(hidden, weight, torch.arange(ROWS), 1.0).backward()
    assert weight.grad is not None
    assert 0 < seen.numbers <= most < ROWS * VOCABULARY


def test_likely_and_unlikely_targets() -> None:
    """Probabilities that fp32 rounds to 1 and to 0 have a finite loss."""
    weight = torch.tensor([[200.0], [-200.0]])
    hidden = torch.ones(2, 1)
    assert float(loss.head_loss_sum(hidden, weight, torch.tensor([0, 1]), 1.0)) == pytest.approx(400.0)


@pytest.mark.parametrize("numbers", [1, 7, 30, 1000])
def test_parts_cover_all_rows_once(numbers: int) -> None:
    parts = loss._parts(11, 3, numbers)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(11))
    assert all((part.stop - part.start) * 3 <= max(numbers, 3) for part in parts)
