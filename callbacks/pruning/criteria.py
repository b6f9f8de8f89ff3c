"""What a weight is worth."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks.errors import CallbackError
from callbacks.network import local
from callbacks.pruning.weights import Weight, reduce_sum

Scope = Literal["rows", "matrix", "network"]


class Criterion:
    """Scores every weight; those with the lowest scores are pruned.

    Attributes:
        compares: which weights compete with each other, unless the structure says.
        adds_up: whether sums and means of scores mean something, or their order alone does.
    """

    compares: Scope = "matrix"
    adds_up = True

    def attach(self, weights: Sequence[Weight], blocks: Sequence[nn.Module]) -> None:
        """Before training: get ready to watch these weights, and the decoder's blocks.

        Raises:
            CallbackError: there is nothing to see of one of them.
        """

    def watch(self, active: bool) -> None:
        """Begin or stop to gather."""

    def before_step(self, weights: Sequence[Weight]) -> None:
        """Before an optimizer step, while its gradients are there."""

    def after_step(self) -> None:
        """After an optimizer step."""

    def score(self, weight: Weight) -> Tensor:
        """Float32 (rows of this rank, in), not negative; the same on every rank that holds the same rows."""
        raise NotImplementedError

    def block_score(self, index: int) -> float | None:
        """What a block of the decoder is worth, None where it is the sum of its weights."""
        return None

    def forget(self) -> None:
        """After the masks changed: let what was gathered weigh half from now on."""

    def state_dict(self) -> dict[str, Any]:
        """What was gathered since the masks changed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class Magnitude(Criterion):
    """|w|. Needs no data; far worse than the others on language models, where few channels carry most."""

    def attach(self, weights: Sequence[Weight], blocks: Sequence[nn.Module]) -> None:
        """Refuse to judge whole blocks."""
        if blocks:
            raise CallbackError("Structured.layers needs Wanda or Taylor: magnitudes say nothing about a whole layer.")

    def score(self, weight: Weight) -> Tensor:
        """|w|."""
        return weight.value.float().abs()


class Wanda(Criterion):
    """|w| x ||x||, x the weight's input over the training batches that have passed (arXiv:2306.11695).

    Weights compete within their output row, as in the paper. A channel's score is the norm of what it adds to its
    layer's output, a block's is one minus the cosine between its input and its output (ShortGPT, arXiv:2403.03853).
    Padding counts as text: pack where you can.
    """

    compares: Scope = "rows"

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._of_step: dict[str, Tensor] = {}
        self._active = True

    def attach(self, weights: Sequence[Weight], blocks: Sequence[nn.Module]) -> None:
        """Watch the inputs of the weights' layers, and what the blocks do to theirs."""
        for weight in weights:
            if isinstance(weight.layer, nn.Embedding):
                raise CallbackError(f"Wanda: {weight.name} is an embedding, which has no activations: use Magnitude.")
            weight.layer.register_forward_pre_hook(self._input_hook(weight.name))
        for i, block in enumerate(blocks):
            block.register_forward_hook(self._block_hook(_block(i)), with_kwargs=True)

    # Hooks are plain functions: a copy of the network must not copy the callback with them.
    def _input_hook(self, name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self._active and module.training:
                self._add(name, args[0].detach().flatten(0, -2).float().square().sum(0))

        return add

    def _block_hook(self, name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._active and module.training:
                before = args[0] if args else kwargs["hidden_states"]
                after = output[0] if isinstance(output, tuple) else output
                turned = 1 - F.cosine_similarity(before.detach().float(), after.detach().float(), dim=-1)
                self._add(name, torch.stack([turned.sum(), turned.new_tensor(turned.numel())]))

        return add

    def _add(self, name: str, sums: Tensor) -> None:
        known = self._of_step.get(name)
        self._of_step[name] = sums if known is None else known + sums

    def watch(self, active: bool) -> None:
        """Begin or stop to gather."""
        self._active = active

    def after_step(self) -> None:
        """Add what all ranks saw in this step, in one exchange: all then go on from the same sums."""
        if not self._of_step:
            return
        names = sorted(self._of_step)
        parts = [self._of_step[name] for name in names]
        sums = reduce_sum(torch.cat(parts)).split([len(part) for part in parts])
        for name, part in zip(names, sums, strict=True):
            known = self._sums.get(name)
            self._sums[name] = part.clone() if known is None else known.to(part.device).add_(part)
        self._of_step = {}

    def score(self, weight: Weight) -> Tensor:
        """|w| x ||x||."""
        if weight.name not in self._sums:
            raise CallbackError(f"Wanda: no batch has passed through {weight.name} yet: let the schedule begin later.")
        return weight.value.float().abs() * self._sums[weight.name].to(weight.local.device).sqrt()

    def block_score(self, index: int) -> float | None:
        """How far the block turns the hidden states: the mean of 1 - cos."""
        turned, count = self._sums[_block(index)].tolist()
        return turned / count

    def forget(self) -> None:
        """Halve the sums, so that newer batches count for more."""
        for sums in self._sums.values():
            sums.mul_(0.5)

    def state_dict(self) -> dict[str, Any]:
        """The sums that were collected so far, for a checkpoint."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums over."""
        self._sums = {name: sums.clone() for name, sums in state.items()}


def _block(index: int) -> str:
    return f"block {index}"


class GradientCriterion(Criterion):
    """Sums of something that each step's gradient says of a weight.

    Holds a float32 number for each weight. Under a sharded strategy a resumed run gathers anew.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._active = True
        self._sharded = False

    def of_step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Float32, of the weight's shape: what is added for a step."""
        raise NotImplementedError

    def attach(self, weights: Sequence[Weight], blocks: Sequence[nn.Module]) -> None:
        """Refuse frozen weights."""
        for weight in weights:
            if not weight.parameter.requires_grad:
                name = type(self).__name__
                raise CallbackError(f"{name} needs gradients, and {weight.name} is frozen: use Wanda with an adapter.")
        self._sharded = any(weight.group is not None for weight in weights)

    def watch(self, active: bool) -> None:
        """Begin or stop to gather; the memory is given back."""
        self._active = active
        if not active:
            self._sums = {}

    def before_step(self, weights: Sequence[Weight]) -> None:
        """Add what this step's gradients say, where all of them are finite."""
        pairs = [(w, local(w.parameter.grad)) for w in weights if w.parameter.grad is not None]
        if not (self._active and pairs):
            return
        if not nn.utils.get_total_norm([g for _, g in pairs]).isfinite():
            return  # the module leaves this step out
        for weight, gradient in pairs:
            part = self.of_step(weight.local, gradient)
            known = self._sums.get(weight.name)
            self._sums[weight.name] = part if known is None else known.to(part.device).add_(part)

    def sums(self, weight: Weight) -> Tensor:
        """What was gathered of a weight."""
        if weight.name not in self._sums:
            name = type(self).__name__
            raise CallbackError(f"{name}: {weight.name} has had no gradient yet: let the schedule begin later.")
        return self._sums[weight.name].to(weight.local.device)

    def forget(self) -> None:
        """Halve the sums, so that newer batches count for more."""
        for sums in self._sums.values():
            sums.mul_(0.5)

    def state_dict(self) -> dict[str, Any]:
        """The sums, where this rank holds all of them."""
        return {} if self._sharded else {"sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums over."""
        self._sums = {name: sums.clone() for name, sums in state.get("sums", {}).items()}


class Taylor(GradientCriterion):
    """|w g|, by its root mean square over steps: how the loss changes without w, to first order (arXiv:1906.10771)."""

    def of_step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """(w g)^2."""
        return (weight * gradient).float().square_()

    def score(self, weight: Weight) -> Tensor:
        """Root of the sum of (w g)^2."""
        return self.sums(weight).sqrt()


class Movement(GradientCriterion):
    """-w g, summed over steps: weights that training moves away from zero stay (arXiv:2005.07683).

    For fine-tuning with a progressive schedule, at high sparsity: large weights that the task does not want can go, and
    small ones that it does can stay.
    """

    adds_up = False

    def of_step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """-w g: above zero where a step of gradient descent makes |w| larger."""
        return (weight * gradient).float().neg_()

    def score(self, weight: Weight) -> Tensor:
        """In the order of the sums, from the fastest to zero upwards; the numbers themselves mean nothing."""
        return in_order(self.sums(weight))


def gradients_of(weights: Sequence[Weight]) -> dict[str, Tensor]:
    """This rank's part of each weight's gradient in this step, as copies; nothing where one is not finite."""
    parts = {w.name: local(w.parameter.grad) for w in weights if w.parameter.grad is not None}
    if len(parts) < len(weights) or not nn.utils.get_total_norm(parts.values()).isfinite():
        return {}
    return {name: part.clone() for name, part in parts.items()}


def in_order(values: Tensor) -> Tensor:
    """Finite float32 of 0 and more in the order of finite float32 values of either sign.

    Of the bits, which are in the order of the values once the negative ones are turned round, the last is dropped.
    """
    bits = values.contiguous().view(torch.int32)
    turned = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return ((turned >> 1) + 0x3FC00000).view(torch.float32)
