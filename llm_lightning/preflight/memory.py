"""The memory that a training step takes on each rank, from running one on tensors without numbers.

No formula knows every architecture, adapter and loss; the step itself does. So the module's own code runs once, forward
and backward, on tensors that have a shape and a place but no numbers, and torch counts what would be alive
(`torch.distributed._tools.mem_tracker`).
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llm_lightning.models.attention import Documents
from llm_lightning.models.loading.sharding import Sharding
from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.pretence import fake_mode, pretended, take_shape
from llm_lightning.preflight.tracker import StepMemory


@dataclass(frozen=True)
class StepEstimate:
    """What a step takes on one rank.

    Args:
        parts: bytes at the worst moment, by kind: weights (those of a reference too), gradients, optimizer,
            activations (logits and temporaries too), batch, and what the strategy adds.
        kept_weights: bytes of weights that a checkpoint and a model folder keep, of all ranks together.
        kept_moments: bytes of the optimizer's state, of all ranks together.
        trained: bytes of the weights that train, of all ranks together.
        flops: of the step's matrix products on this rank, where they were counted.
        seconds: that the estimate took.
    """

    parts: Mapping[str, int]
    kept_weights: int = 0
    kept_moments: int = 0
    trained: int = 0
    flops: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    def plus(self, name: str, size: int) -> "StepEstimate":
        """With more of a kind."""
        return replace(self, parts=dict(self.parts) | {name: self.parts.get(name, 0) + size})


def estimate_step(
    module: LanguageModule,
    batch: Mapping[str, Any],
    trainer: Trainer,
    *,
    sharding: Sharding | None = None,
    counts_flops: bool = False,
) -> StepEstimate:
    """Memory of a step as it is from the second one on, when the optimizer has its state.

    Args:
        module: before its network is built; it stays as it is.
        batch: a micro-batch on the CPU, as the data has it (see `rows_like`).
        trainer: with device, precision and micro-batches of a step; of several, gradients wait beside activations.
        sharding: over ranks; None: whole.
        counts_flops: whether to count them too, which takes longer.

    Raises:
        RuntimeError: an operator has no rule for tensors without numbers.
    """
    began = time.monotonic()
    module.backbone.behaviour(module.task)  # tried out on real numbers, and known from here on
    precision, device = trainer.precision_plugin, trainer.strategy.root_device
    mode = fake_mode()

    def fill(network: nn.Module) -> None:
        with mode:
            take_shape(network, device)
            if sharding is not None:
                sharding.apply(network)

    probe = pretended(module, fill)
    probe.trainer = trainer
    prepared = dict(probe.on_before_batch_transfer(batch, 0))
    with precision.module_init_context():
        probe.configure_model()
    with mode:
        inputs = {name: _moved(value, mode, device) for name, value in prepared.items()}
        optimizer = probe.optimizer(probe.parameter_groups())
        memory = StepMemory()
        memory.know(probe.networks, optimizer, [value for value in inputs.values() if isinstance(value, Tensor)])
        counter = FlopCounterMode(display=False)
        with memory:
            _make_moments(optimizer)
            with counter if counts_flops else nullcontext():
                for number in range(min(2, trainer.accumulate_grad_batches)):
                    with precision.forward_context():
                        loss = probe.training_step(inputs, number)
                    loss.backward()
                    probe.step.sums.clear()
                    del loss
            moments = _size(x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    weights = list(probe.model.parameters())
    trained = _size(p for p in weights if p.requires_grad)
    kept = trained if probe.adapter is not None else _size(weights)
    flops = counter.get_total_flops() if counts_flops else 0
    return StepEstimate(memory.peak(device), kept, moments, trained, flops, time.monotonic() - began)


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes, those on other ranks included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _make_moments(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _moved(value: Any, mode: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value, static_shapes=True).to(device)
    if isinstance(value, Documents):
        names = ("cu_seqlens", "source", "kept")
        moved = {name: _moved(x, mode, device) for name in names if (x := getattr(value, name)) is not None}
        return replace(value, **moved)
    return value
