"""Networks of another depth for each row, in training."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from callbacks.contract import HoldsNetwork, required
from callbacks.errors import CallbackError
from callbacks.network import base_network, blocks


class StochasticDepth(Callback):
    """Leaves out what a block adds to a row, by chance (arXiv:1603.09382), as LayerDrop does (arXiv:1909.11556).

    The chance grows from the first block to the last one, which has `rate`; what is kept counts for what was left out,
    so that validation and generation use the network as it is. Blocks are computed all the same: each row has its own
    chance, ranks stay in step, and every strategy and adapter will do. It regularizes, and saves no time.

    Args:
        rate: Of the last block.

    Raises:
        CallbackError: The rate is no share, or the network's blocks are not found.
    """

    def __init__(self, rate: float = 0.1) -> None:
        if not 0 < rate < 1:
            raise CallbackError(f"StochasticDepth.rate={rate} must be above 0 and below 1; 0.1 to 0.3 are usual.")
        self.rate = rate
        self._hooks: list[RemovableHandle] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = blocks(base_network(required(pl_module, HoldsNetwork, self).model))
        if not found:
            raise CallbackError(f"StochasticDepth: no blocks were found in {type(pl_module).__name__}'s network.")
        for number, block in enumerate(found, start=1):
            drop = Drop(self.rate * number / len(found))
            self._hooks.append(block.register_forward_hook(drop, with_kwargs=True))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class Drop:
    """A hook that leaves out what a block adds, with some chance for each row."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What comes out of the block: of rows that leave it out, what went in."""
        if not (block.training and torch.is_grad_enabled()):
            return None
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        kept = torch.rand(len(states), 1, 1, device=states.device) >= self.chance
        changed = states + (after - states) * (kept / (1 - self.chance)).to(after.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
