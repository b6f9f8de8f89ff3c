"""Shares of sources that go by how far each one's validation loss is from where it should end."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.contract import MeasuresSources, MixesSources, offered, required
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal, is_validating_fit
from callbacks.trainer_parts import datamodule_of
from callbacks.training_loop import is_accumulating, is_on_schedule, logs_now, validates_by_time


class LossWeightedMixture(Callback):
    """After each validation gives more of the rows to the sources whose loss is further above a reference.

    The dynamic batch loading of Sheared LLaMA (arXiv:2310.06694, algorithm 1), which is the update of DoReMi
    (arXiv:2305.10429) with losses of validation: a share is multiplied by `exp(rate * max(loss - reference, 0))`, and
    all are divided by their sum. The shares of the first step are the weights of the DataModule's sources.

    New shares hold from the batch behind the validation on. They are a function of the losses alone, so that a run that
    goes on has them again; the first rank's count for all. The checkpoint of the data has them, with the sample that
    each holds from. What a run that is told to stop validates beyond its schedule changes nothing, and neither does a
    validation with a loss that is not finite.

    Logs `train/share/SOURCE`, of each step.

    Args:
        reference: By the name of each source, as in `val/loss/SOURCE`, the loss in nats a token that it is to reach: of
            a smaller or an earlier model on the same validation data and tokens. A source that is there leaves the
            others its share.
        rate: Of the exponents. 1 as in both papers.
        smoothing: The part of the rows that is shared evenly, so that no source is ever left out. 0.001 as in DoReMi.

    Raises:
        CallbackError: A setting is out of range; before training, if the reference is of other sources, the module logs
            no losses of sources, or the validations are not whole or come by the clock. The DataModule raises its own
            errors, where it has no sources whose shares can move, or one of them does not validate.
    """

    def __init__(self, reference: dict[str, float], rate: float = 1.0, smoothing: float = 1e-3) -> None:
        for name, value in reference.items():
            if not 0 <= value < math.inf:
                raise CallbackError(f"LossWeightedMixture.reference: the loss of {name!r} cannot be {value}.")
        if not 0 < rate < math.inf:
            raise CallbackError(f"LossWeightedMixture.rate={rate} must be above 0; 1 is usual.")
        if not 0 <= smoothing < 1:
            raise CallbackError(f"LossWeightedMixture.smoothing={smoothing} must be at least 0 and below 1.")
        self.reference = reference
        self.rate = rate
        self.smoothing = smoothing

    def check(self, datamodule: Any) -> None:
        """Compare the reference with a run's data, before any long work.

        Raises:
            CallbackError: it has no sources, or others.
        """
        data = offered(datamodule, MixesSources)
        if data is None:
            raise CallbackError(
                f"LossWeightedMixture: {type(datamodule).__name__} has no sources whose shares can be moved; leave it "
                "out, or take TextDataModule with data.sources."
            )
        data.require_mixture("LossWeightedMixture")
        names = list(data.shares())
        if set(names) != set(self.reference):
            raise CallbackError(
                f"LossWeightedMixture.reference has losses of {list(self.reference)}, and the sources are {names}: "
                "give one for each."
            )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(datamodule_of(trainer))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        required(pl_module, MeasuresSources, self)
        if is_rehearsal(trainer):
            return
        if trainer.limit_val_batches != 1.0 or isinstance(trainer.limit_val_batches, int):
            raise CallbackError(
                f"LossWeightedMixture: trainer.limit_val_batches={trainer.limit_val_batches} leaves sources out of "
                "validation: leave that setting out, and hold out less by data.val_share."
            )
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise CallbackError("LossWeightedMixture: trainer.overfit_batches has no mixture: leave one of them out.")
        if validates_by_time(trainer):
            raise CallbackError(
                "LossWeightedMixture: trainer.val_check_interval is a time, so that shares would follow the clock, and "
                "no run could be repeated: give a number of batches."
            )

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer) or not is_on_schedule(trainer):
            return
        losses = {name: self._loss(trainer, name) for name in self.reference}
        if all(math.isfinite(loss) for loss in losses.values()):
            data = self._data(trainer)
            shares = moved(data.shares(), losses, self.reference, self.rate, self.smoothing)
            data.reweigh(trainer.strategy.broadcast(shares))

    def _loss(self, trainer: Trainer, name: str) -> float:
        logged = trainer.callback_metrics.get(f"val/loss/{name}")
        if logged is None:
            raise CallbackError(
                f"LossWeightedMixture: val/loss/{name} was not logged: {type(trainer.lightning_module).__name__} "
                "measures no losses of sources."
            )
        return float(logged)

    def _data(self, trainer: Trainer) -> MixesSources:
        data = offered(datamodule_of(trainer), MixesSources)
        assert data is not None  # or `check` had raised
        return data

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_accumulating(trainer) and logs_now(trainer):
            shares = self._data(trainer).shares()
            pl_module.log_dict({f"train/share/{name}": share for name, share in shares.items()})


def moved(
    shares: Mapping[str, float],
    losses: Mapping[str, float],
    reference: Mapping[str, float],
    rate: float,
    smoothing: float,
) -> dict[str, float]:
    """Shares after a validation, which add up to 1 as those before do; see `LossWeightedMixture`."""
    exponents = {name: rate * max(losses[name] - reference[name], 0.0) for name in shares}
    most = max(exponents.values())
    grown = {name: share * math.exp(exponents[name] - most) for name, share in shares.items()}
    total = sum(grown.values())
    return {name: (1 - smoothing) * each / total + smoothing / len(shares) for name, each in grown.items()}
