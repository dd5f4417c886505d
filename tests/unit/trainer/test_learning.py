"""Optimizer, learning rate, loss scale, first weights, progress."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from trainer import export
from trainer.errors import ConfigError
from trainer.finite import Diverged, Record
from trainer.model import build, shape, weights
from trainer.optimizer import AdamW, learning_rate
from trainer.parallel.apply import parallelize
from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import MicroBatch, ParallelModel
from trainer.precision import LossScale, choose
from trainer.progress import Progress
from trainyard.api.train import ModelConfig, OptimizerConfig


def optimizer_config(**fields: float) -> OptimizerConfig:
    return OptimizerConfig.model_validate(fields)


def test_learning_rate() -> None:
    config = optimizer_config(learningRate=1.0, warmupSteps=10)
    rates = [learning_rate(config, 110, step) for step in range(1, 111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[59] == pytest.approx(0.55)  # half-way down
    assert rates[-1] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert learning_rate(optimizer_config(learningRate=1.0), 100_000, 1000) == pytest.approx(0.5)  # 2,000 at most
    assert learning_rate(optimizer_config(learningRate=1.0, warmupSteps=0), 1, 1) == pytest.approx(0.1)


@pytest.mark.parametrize(("fused", "offload"), [(True, False), (False, False), (True, True)])
def test_adamw_is_torchs(fused: bool, offload: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "linear": nn.Linear(4, 3)})
    twin = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "linear": nn.Linear(4, 3)})
    twin.load_state_dict(model.state_dict())
    config = optimizer_config(learningRate=0.1, weightDecay=0.2, offload=offload)
    ours = AdamW(model, config)
    ours._fused = fused
    theirs = torch.optim.AdamW([{"params": [twin["linear"].weight], "weight_decay": 0.2},
                                {"params": [twin["embedding"].weight, twin["linear"].bias], "weight_decay": 0.0}],
                               betas=(0.9, 0.95), eps=1e-8)
    for rate in (0.1, 0.05, 0.01):
        theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = rate
        for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.grad = torch.randn_like(other)
            mine.grad = other.grad * 4
        squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        assert float(ours.squared_norm()) == pytest.approx(squares, rel=1e-5)
        ours.step(rate, 4.0)
        theirs.step()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    state = ours.state()
    assert set(state["first_moment"]) == {"embedding.weight", "linear.weight", "linear.bias"}
    torch.testing.assert_close(state["second_moment"]["linear.bias"], theirs.state[twin["linear"].bias]["exp_avg_sq"])


def test_loss_scale() -> None:
    scale = LossScale(value=1024.0, growth_steps=2)
    scale.overflowed()
    assert scale.value == 512.0
    scale.succeeded()
    scale.overflowed()
    scale.succeeded()
    assert scale.value == 256.0  # one good step since the last overflow
    scale.succeeded()
    assert scale.value == 512.0
    for _ in range(40):
        scale.overflowed()
    assert scale.exhausted
    assert not math.isinf(scale.value)


class Updates:
    """Notes what an optimizer would be told."""

    def __init__(self) -> None:
        self.divisors: list[float] = []

    def step(self, rate: float, divide_gradients_by: float) -> None:
        self.divisors.append(divide_gradients_by)

    def zero_gradients(self) -> None:
        pass


def test_overflow_is_a_fault_without_a_loss_scale_only() -> None:
    from trainer.loop import Loop, Totals
    from trainyard.api.train import TrainConfig

    loop = Loop.__new__(Loop)
    loop.config = TrainConfig.model_validate({"model": {"size": "tiny"}, "data": {"sources": [{"path": "/data"}]},
                                              "steps": 10, "optimizer": {"clipNorm": 2.0}})
    updates = Updates()
    loop.optimizer = updates  # type: ignore[assignment]
    loop.step, loop.scale, loop.record = 4, LossScale(value=8.0), Record()
    fine = Totals(2.0, 6.0, overflow=False, drain=False, busy=False, save=False)
    loop.update(fine, 0.1)
    assert updates.divisors == [3.0 * 8.0]  # clipped to a third, and the scale taken out
    for bad in (Totals(2.0, math.inf, False, False, False, False), Totals(2.0, 1.0, True, False, False, False)):
        loop.update(bad, 0.1)
    assert len(updates.divisors) == 1
    assert loop.scale.value == 2.0
    loop.scale = None
    for _ in range(2):
        nan = Totals(math.nan, 1.0, False, False, False, False)
        loop.update(nan, 0.1)
        assert not nan.updated
        loop.step += 1
    with pytest.raises(Diverged, match="step 7: the loss is nan"):
        loop.update(Totals(math.nan, 1.0, False, False, False, False), 0.1)
    assert loop.record.skipped == [5, 6]
    assert len(updates.divisors) == 1


def test_precision_of_a_cpu_is_fp32() -> None:
    assert choose("auto", torch.device("cpu")) == "fp32"
    assert choose("bf16", torch.device("cpu")) == "bf16"


def test_bf16_on_a_device_without_it_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: False)
    assert choose("auto", torch.device("cuda", 0)) == "fp16"
    with pytest.raises(ConfigError, match=r"train\.precision is bf16, which this device \(cuda\) does not have"):
        choose("bf16", torch.device("cuda", 0))


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This process thinks that it is rank 0 of 4; its collectives move nothing."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def spread_model(layout: Layout, **config: Any) -> ParallelModel:
    """Rank 0's part of a small model, a mixture if `config` has experts."""
    fields = shape.fields(ModelConfig.model_validate({
        "size": "tiny", "family": "mixtral" if "num_local_experts" in config else "llama2", "config": {
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, **config}}))
    device = torch.device("cpu")
    complete = build.complete(fields)
    model = parallelize(lambda: build.on_meta(complete), Mesh(layout, device, 0), "fp32", "none")
    build.give_weights(model, device, lambda part: weights.draw(part, 0))
    return model


def test_replicas_reduce_once_a_step(monkeypatch: pytest.MonkeyPatch, four_ranks: None) -> None:
    """However many micro-batches it has."""
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    reduced: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name == "all_reduce":
                reduced.append(name)
            return getattr(dist, name)

    monkeypatch.setattr(_fsdp_collectives, "dist", Counting())
    model, tokens = spread_model(Layout(data=2, shard=2)), torch.arange(16)[None]
    counts = []
    for micros in (1, 4):
        reduced.clear()
        model.train_batch(micros, lambda _: MicroBatch(tokens, tokens), 1.0, lambda _: None)
        counts.append(len(reduced))
    assert counts[0] == counts[1] == 3, "two blocks, and the rest"


@pytest.mark.parametrize("layout", [Layout(shard=4), Layout(data=2, shard=2)])
@pytest.mark.usefixtures("four_ranks")
def test_gradient_accumulation_keeps_no_whole_gradients(layout: Layout) -> None:
    """Between two micro-batches a rank holds its share of the gradients, not those of the whole model."""
    model = spread_model(layout)
    states = [state for module in model.modules() if isinstance(module, FSDPModule)
              for state in module._get_fsdp_state()._fsdp_param_group.fsdp_params]
    assert len(states) == sum(1 for _ in model.parameters())
    tokens = torch.arange(16)[None]
    whole: list[object] = []

    def before(_: int) -> None:
        whole.extend(state for state in states if state.unsharded_accumulated_grad is not None
                     or (hasattr(state, "_unsharded_param") and state.unsharded_param.grad is not None))

    model.train_batch(3, lambda _: MicroBatch(tokens, tokens), 1.0, before)
    before(3)
    assert not whole
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.usefixtures("four_ranks")
def test_padding_does_not_make_balance_weigh_more() -> None:
    model = spread_model(Layout(data=4, experts=4), num_local_experts=4, num_experts_per_tok=2)
    tokens = torch.arange(16)[None]
    found = []
    for real in (1.0, 0.25):
        model.train_batch(1, lambda _: MicroBatch(tokens, torch.full_like(tokens, -1)), 1.0, lambda _: None, real)
        found.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
        for parameter in model.parameters():
            parameter.grad = None
    assert any(one.abs().max() > 0 for one in found[0])
    for whole, quarter in zip(*found, strict=True):
        torch.testing.assert_close(quarter, whole / 4)


def test_drawn_numbers_do_not_depend_on_the_slice() -> None:
    rows, columns = 5000, 33
    whole = torch.empty(rows, columns)
    weights.fill_normal(whole, (slice(0, rows), slice(0, columns)), (rows, columns), 0.5, "1/name")
    for start, stop in [(0, 1700), (1700, 3333), (3333, 5000), (4999, 5000)]:
        part = torch.empty(stop - start, columns)
        weights.fill_normal(part, (slice(start, stop), slice(0, columns)), (rows, columns), 0.5, "1/name")
        assert torch.equal(part, whole[start:stop])
    narrow = torch.empty(rows, 10)
    weights.fill_normal(narrow, (slice(0, rows), slice(20, 30)), (rows, columns), 0.5, "1/name")
    assert torch.equal(narrow, whole[:, 20:30])
    other = torch.empty(rows, columns)
    weights.fill_normal(other, (slice(0, rows), slice(0, columns)), (rows, columns), 0.5, "2/name")
    assert abs(float(torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1])) < 0.01
    assert float(whole.mean()) == pytest.approx(0, abs=0.01)
    assert float(whole.std()) == pytest.approx(0.5, rel=0.01)
    assert len(torch.unique(whole)) > whole.numel() * 0.98  # no block repeats another


def test_model_from_meta_is_transformers_own() -> None:
    fields = shape.fields(ModelConfig.model_validate({"size": "tiny", "config": {
        "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": True}}))
    model = build.on_meta(build.complete(fields))
    weights.materialise(model, torch.device("cpu"))
    build.restore_buffers(model, torch.device("cpu"))
    weights.draw(model, 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
        assert float(model.model.norm.weight.min()) == 1.0


def test_experts_have_a_matrix_each_in_files(tmp_path: Path) -> None:
    """The names of published checkpoints: transformers reads them, and so does the trainer."""
    from safetensors.torch import save_file
    from transformers import MixtralForCausalLM

    fields = shape.fields(ModelConfig.model_validate({"family": "mixtral", "size": "tiny", "config": {
        "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_local_experts": 3}}))
    model: Any = build.on_meta(build.complete(fields))
    weights.materialise(model, torch.device("cpu"))
    weights.draw(model, 0)
    pieces = {name: tensor for parameter, whole in model.named_parameters()
              for name, tensor in export._pieces(parameter, whole.detach()).items()}
    assert len(pieces) == 2 * (4 + 2 + 1 + 3 * 3) + 3
    assert pieces["model.layers.1.block_sparse_moe.experts.2.w3.weight"].shape == (256, 32)
    save_file(pieces, tmp_path / "model.safetensors", metadata={"format": "pt"})
    export._write_configs(model.config, tmp_path, torch.float32)
    loaded, report = MixtralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    again: Any = build.on_meta(build.complete(fields))
    weights.materialise(again, torch.device("cpu"))
    weights.read(again, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_progress_file(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress", steps=10, evaluationLoss=None)
    for number in range(7):
        progress.warn(f"Reason{number}", "something")
    progress.warn("Reason5", "something newer")
    progress.update(durableStep=3)
    lines = (tmp_path / "progress").read_text().splitlines()
    assert len(lines) == 1
    content = json.loads(lines[0])
    assert (content["step"], content["steps"], content["durableStep"]) == (0, 10, 3)
    assert "evaluationLoss" not in content
    assert [entry["reason"] for entry in content["warnings"]] == ["Reason2", "Reason3", "Reason4", "Reason6", "Reason5"]
    assert content["warnings"][-1]["message"] == "something newer"
    Progress(tmp_path / "missing" / "progress").update(step=1)  # nowhere to write: training goes on
