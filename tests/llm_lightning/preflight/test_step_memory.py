"""The estimate of a step, made without numbers, against the allocations of the same step as it really runs."""

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from torch import distributed as dist
from torch.profiler import ProfilerActivity, profile

from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining, PreferenceOptimization, RewardModeling
from llm_lightning.preflight.bound import most_of
from llm_lightning.preflight.memory import estimate_step
from llm_lightning.preflight.ranks import pretended_sharding
from llm_lightning.preflight.rows import packed_rows, pair_rows
from llm_lightning.strategies.fsdp2 import FSDP2Strategy
from tests.llm_lightning.conftest import tiny_config

ROWS, LENGTH = 4, 96
CONFIG = tiny_config(hidden_size=64, intermediate_size=160, vocab_size=512)


def trainer(**settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", precision="32-true", **quiet | settings)


def measured(module, batch) -> int:
    """Bytes at the peak of a real step, from torch's profiler: what is there before it, and what it allocates."""
    module.trainer = trainer()
    module.configure_model()
    batch = module.on_before_batch_transfer(batch, 0)
    optimizer = module.optimizer(module.parameter_groups())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    networks = [module.model, *(each.frozen for each in getattr(module, "_reference", ()) if each.frozen is not None)]
    tensors = {id(t): t for network in networks for t in (*network.parameters(), *network.buffers())}
    tensors |= {id(t): t for state in optimizer.state.values() for t in state.values()}
    tensors |= {id(t): t for t in batch.values() if isinstance(t, torch.Tensor)}
    before = sum(t.numel() * t.element_size() for t in tensors.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module.training_step(batch, 0).backward()
        module.step.sums.clear()
        optimizer.step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return before + peak


@pytest.mark.parametrize(
    ("kind", "options", "backbone"),
    [
        (CausalPretraining, {}, {}),
        (CausalPretraining, {}, {"activation_checkpointing": True}),
        (CausalPretraining, {"peft": LoraConfig(r=4, target_modules="all-linear")}, {}),
        (RewardModeling, {}, {}),
        (PreferenceOptimization, {}, {}),
        (PreferenceOptimization, {"peft": LoraConfig(r=4, target_modules="all-linear")}, {}),
    ],
    ids=["full", "checkpointing", "lora", "reward", "reference", "reference-lora"],
)
def test_the_estimate_is_what_a_step_allocates(kind, options, backbone):
    rows = packed_rows if kind is CausalPretraining else pair_rows
    module = kind(Backbone(config=CONFIG, **backbone), **options)
    estimate = estimate_step(module, rows(ROWS, LENGTH), trainer())
    assert module.model is None, "nothing was built"
    assert estimate.total == pytest.approx(measured(module, rows(ROWS, LENGTH)), rel=0.1)
    assert estimate.total < most_of(kind(Backbone(config=CONFIG, **backbone), **options), rows(ROWS, LENGTH)).step


def test_sharded_ranks_hold_a_part_of_the_states():
    whole = estimate_step(CausalPretraining(Backbone(config=CONFIG)), packed_rows(ROWS, LENGTH), trainer())
    four = trainer(strategy=FSDP2Strategy(), devices=4)
    with pretended_sharding(four) as sharding:
        part = estimate_step(
            CausalPretraining(Backbone(config=CONFIG)), packed_rows(ROWS, LENGTH), four, sharding=sharding
        )
    assert not dist.is_initialized()
    for name in ("weights", "optimizer"):
        assert part.parts[name] == pytest.approx(whole.parts[name] / 4, rel=0.02)
    assert part.kept_moments == whole.kept_moments, "of all ranks together"
    assert whole.parts["activations"] < part.parts["activations"] < 2 * whole.parts["activations"]


def test_a_second_micro_batch_waits_beside_gradients():
    module = CausalPretraining(Backbone(config=CONFIG))
    one, two = (estimate_step(module, packed_rows(1, 32), trainer(accumulate_grad_batches=n)) for n in (1, 2))
    assert one.total < two.total < 1.01 * (one.total + one.trained)
