"""The weights that old texts need are drawn to their start."""

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from callbacks.continual.fisher import fisher_diagonal, pieces
from callbacks.continual.near_start import NearStart
from callbacks.contract import HasTokenizer, HoldsNetwork, ReadsTexts, offered, required
from callbacks.errors import CallbackError
from callbacks.network import has_adapter, local
from callbacks.parts import summed_over_ranks
from callbacks.trainer_parts import datamodule_of

FISHER = "fisher"
"""The key of the importance in a checkpoint."""


class EWC(NearStart):
    """Draws each trained weight to its start by how much old texts depend on it (elastic weight consolidation,
    arXiv:1612.00796); see `NearStart` for how.

    The importance F is the diagonal of the empirical Fisher information at the start, over pieces of the old texts: the
    mean over pieces of the squared gradient of a piece's log-likelihood, the sum over all of its tokens but the first.
    It is divided by its own mean over all trained weights. So a strength pulls as much in the mean as it does with
    `L2SP`, whatever the length and number of the pieces; the paper's lambda, which is for F as it was, is the strength
    divided by that mean, and a line says it.

    It is estimated before the first step, on each rank from the same pieces, one at a time: ranks that share the
    weights need each other's part of a single piece's gradient, and the square of several pieces' sum is another
    number. Then the checkpoints keep it.

    Args:
        strength: Of the pull; see `NearStart`.
        path: The old texts, as `data.path` names texts. What stands first is read.
        num_pieces: How many are read, 128 by default, at the cost of as many steps of one row.
        piece_len: Tokens of a piece, at most; longer texts are cut into several. 1024 is the rows' default length.

    Attributes:
        fisher: By the names of the module's parameters, F of this rank's parts.

    Raises:
        CallbackError: Before training, see `NearStart`; or the network is none that continues text, or an adapter, or
            there are no texts.
    """

    def __init__(self, strength: float, path: str, num_pieces: int = 128, piece_len: int = 1024) -> None:
        super().__init__(strength)
        if num_pieces < 1:
            raise CallbackError(f"EWC.num_pieces={num_pieces} is below 1.")
        if piece_len < 2:
            raise CallbackError(f"EWC.piece_len={piece_len} is below 2: of one token nothing is predicted.")
        self.path = path
        self.num_pieces = num_pieces
        self.piece_len = piece_len
        self.fisher: dict[str, Tensor] = {}

    @override
    def importance(self, name: str) -> Tensor:
        return self.fisher[name]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = required(pl_module, HoldsNetwork, self).model
        if has_adapter(network) or hasattr(network, "bottleneck_config"):
            raise CallbackError(
                "EWC: a new adapter changes nothing yet, so that old texts need nothing of its A, whatever becomes of "
                "it. Take L2SP, or train the network itself without model.peft."
            )
        if not network.can_generate() or network.config.is_encoder_decoder:
            name = type(network).__name__
            raise CallbackError(f"EWC asks how likely texts are, which a {name} does not say: take L2SP.")
        if offered(datamodule_of(trainer), ReadsTexts) is None:
            raise CallbackError("EWC.path: the run's DataModule reads no texts (`texts`); take one of datamodules.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_first = not self.start
        super().on_train_start(trainer, pl_module)
        if self.fisher:
            self.fisher = self.parts_of(self.fisher, self._parameters)
        elif is_first:
            self.fisher = self._estimate(trainer, pl_module)
        else:
            raise CallbackError(
                "EWC: the checkpoint has the start and not what old texts need of it, which cannot be told any more. "
                "Go on with L2SP, or start over with --resume false."
            )

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        rows = self._rows(trainer, pl_module)
        pl_module.print(f"EWC: how much {len(rows):,} pieces of {self.path} depend on each weight")
        network, context = required(pl_module, HoldsNetwork, self).model, trainer.precision_plugin.forward_context
        fisher = fisher_diagonal(network, self._parameters, rows, context)
        sums = {weight: fisher[name].sum() for name, weight in self._parameters.items()}
        counts = {weight: torch.full_like(total, local(weight).numel()) for weight, total in sums.items()}
        mean = float(summed_over_ranks(trainer, sums) / summed_over_ranks(trainer, counts))
        if not 0 < mean < math.inf:
            raise CallbackError(f"EWC: the mean importance of a weight is {mean}: look at the texts of {self.path}.")
        pl_module.print(f"  its mean is {mean:.3g}, so that the paper's lambda is {self.strength / mean:.3g}")
        return {name: value.div_(mean) for name, value in fisher.items()}

    def _rows(self, trainer: Trainer, pl_module: LightningModule) -> list[Tensor]:
        texts = cast(ReadsTexts, datamodule_of(trainer)).texts(self.path)
        tokenizer = required(pl_module, HasTokenizer, self).tokenizer
        rows = list(pieces(texts, tokenizer, self.num_pieces, self.piece_len))
        if not rows:
            raise CallbackError(f"EWC.path: {self.path!r} has no text of two tokens.")
        return [row.to(pl_module.device) for row in rows]

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.fisher:
            checkpoint[FISHER] = self.whole(self.fisher)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.training:
            self.fisher = checkpoint.get(FISHER, {})
