"""Blocks that are left out of whole micro-batches, in training, and not computed there."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.network import blocks
from callbacks.parts import check_strategy
from callbacks.regularization.noise import Noise, is_training
from callbacks.regularization.zero_gradients import with_zero_gradients


class LayerDrop(Noise):
    """Leaves blocks out of a micro-batch, by chance (arXiv:1909.11556; with `linear` the stochastic depth of
    arXiv:1603.09382), and saves their time.

    What a block adds is divided by its chance to be kept, so that validation, samples and generation use the network
    as it is, and so do networks that are made smaller afterwards by leaving blocks out. `StochasticDepth` draws for
    each row instead, computes everything, and goes with every strategy and with compiled blocks.

    The seed, the optimizer step, the place of the micro-batch in it and that of the block decide. So a run goes on bit
    for bit, and all ranks leave out the same blocks, without which those that shard weights would wait for each other
    for ever. The weights of a block that is left out have gradients of 0, on one rank as on many.

    Args:
        rate: The chance of a block to be left out; 0.1 to 0.3 are usual.
        profile: `uniform`: the same of all blocks. `linear`: it grows from the first block to the last one, which has
            `rate`, since early blocks make what all others work with.
        seed: Of the draws.

    Raises:
        CallbackError: The rate is no share; before training, if the blocks cannot be left out: none are found, or they
            are compiled, under DeepSpeed or FSDP 1, or of a module that steps by itself (PPO); in the first
            micro-batch, if they hand on more than their states.
    """

    def __init__(self, rate: float = 0.2, profile: Literal["uniform", "linear"] = "uniform", seed: int = 0) -> None:
        if not 0 < rate < 1:
            raise CallbackError(f"LayerDrop.rate={rate} must be above 0 and below 1; 0.1 to 0.3 are usual.")
        if profile not in ("uniform", "linear"):
            raise CallbackError(f"LayerDrop.profile={profile!r} must be `uniform` or `linear`.")
        super().__init__()
        self.rate = rate
        self.profile = profile
        self.seed = seed
        self._gates: list[Gate] = []
        self._place = Place(-1, -1)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_strategy(trainer, "LayerDrop")
        if not pl_module.automatic_optimization:
            raise CallbackError(
                f"LayerDrop: {type(pl_module).__name__} compares what it trains with what it wrote by the whole "
                "network; leave LayerDrop out."
            )
        self._place = Place(-1, -1)
        super().on_fit_start(trainer, pl_module)

    @override
    def attach(self, network: Any) -> list["Gate"]:
        found = blocks(network)
        if not found:
            raise CallbackError(f"LayerDrop: no blocks were found in a {type(network).__name__}.")
        if any(module._compiled_call_impl is not None for module in network.modules()):
            raise CallbackError(
                "LayerDrop leaves out no blocks that are compiled: set model.backbone.compile to false, or take "
                "StochasticDepth."
            )
        self._gates = [Gate(block, self._chance(n, len(found))) for n, block in enumerate(found, start=1)]
        return self._gates

    def _chance(self, number: int, depth: int) -> float:
        return self.rate if self.profile == "uniform" else self.rate * number / depth

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._place = self._place.next(trainer.global_step)
        for number, gate in enumerate(self._gates):
            gate.is_left_out = _share(self.seed, *self._place, number) < gate.chance


class Place(NamedTuple):
    """A micro-batch: how many steps of the optimizer came before it, and how many micro-batches of its own step."""

    step: int
    micro_batch: int

    def next(self, step: int) -> "Place":
        """The one that comes next, given the steps by now."""
        return Place(step, self.micro_batch + 1 if step == self.step else 0)


class Gate:
    """The forward pass of a block, which is left out while `is_left_out` says so.

    It stands in the place of `block.forward`, inside the hooks of strategies, which all ranks run, and outside of
    activation checkpointing. An object with the block as an attribute, so that a copy of the network has its own.
    """

    def __init__(self, block: nn.Module, chance: float) -> None:
        self.block = block
        self.chance = chance
        self.is_left_out = False
        self.whole: Callable[..., Any] = block.forward
        self._is_known = False
        block.forward = self

    def remove(self) -> None:
        """Give the block its own forward pass back."""
        self.block.__dict__.pop("forward", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What comes out of the block, or what went in."""
        if not is_training(self.block):
            return self.whole(*args, **kwargs)
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        if self.is_left_out:
            self._look_at_output(states.device, args, kwargs)
            return with_zero_gradients(states, [p for p in self.block.parameters() if p.requires_grad])
        output = self._checked(self.whole(*args, **kwargs))
        return states + (output - states) / (1 - self.chance)

    def _look_at_output(self, device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In the first micro-batch, so that a block that cannot be left out is found out before any training."""
        if not self._is_known:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                self._checked(self.whole(*args, **kwargs))

    def _checked(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise CallbackError(
                f"LayerDrop: a {type(self.block).__name__} hands on more than its states, which others wait for: take "
                "StochasticDepth."
            )
        self._is_known = True
        return output


def _share(*key: int) -> float:
    """From 0 to 1, evenly, the same for a key on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
