"""Networks of another depth for each row, in training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.network import blocks
from callbacks.regularization.noise import Noise, is_training


class StochasticDepth(Noise):
    """Leaves out what a block adds to a row, by chance (arXiv:1603.09382), as LayerDrop does (arXiv:1909.11556).

    The chance grows from the first block to the last one, which has `rate`; what is kept counts for what was left out,
    so that validation and generation use the network as it is. Blocks are computed all the same: each row has its own
    chance, and ranks stay in step. It regularizes, and saves no time.

    Args:
        rate: Of the last block.

    Raises:
        CallbackError: The rate is no share, or the network's blocks are not found.
    """

    def __init__(self, rate: float = 0.1) -> None:
        if not 0 < rate < 1:
            raise CallbackError(f"StochasticDepth.rate={rate} must be above 0 and below 1; 0.1 to 0.3 are usual.")
        super().__init__()
        self.rate = rate

    @override
    def attach(self, network: Any) -> list[RemovableHandle]:
        found = blocks(network)
        if not found:
            raise CallbackError(f"StochasticDepth: no blocks were found in a {type(network).__name__}.")
        return [
            block.register_forward_hook(Drop(self.rate * number / len(found)), with_kwargs=True)
            for number, block in enumerate(found, start=1)
        ]


class Drop:
    """A hook that leaves out what a block adds, with some chance for each row."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What comes out of the block: of rows that leave it out, what went in."""
        if not is_training(block):
            return None
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        kept = torch.rand(len(states), 1, 1, device=states.device) >= self.chance
        changed = states + (after - states) * (kept / (1 - self.chance)).to(after.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
