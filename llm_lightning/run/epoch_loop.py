"""Lightning's training loop, with validations that fall between optimizer steps."""

from math import ceil, inf
from typing import Any

from lightning.pytorch.loops import _TrainingEpochLoop
from typing_extensions import override


class StepwiseEpochLoop(_TrainingEpochLoop):
    """Counts `val_check_interval` in optimizer steps.

    Lightning counts batches, so that with accumulation validation would come too often, and in the middle of a step. A
    share is one of an epoch's steps. For modules that step by themselves (PPO) batches count as before.
    """

    @override
    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        if self._should_accumulate():
            return False
        trainer = self.trainer
        interval = trainer.val_check_batch
        if interval is None or interval == inf or (trainer.should_stop and trainer.fit_loop._can_stop_early):
            return super()._should_check_val_fx(data_fetcher)
        if not self._should_check_val_epoch():
            return False
        if trainer.check_val_every_n_epoch is not None:
            share, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches
            if isinstance(share, float):
                interval = max(1, int(ceil(trainer.num_training_batches / accumulated) * share))
            return ceil((self.batch_idx + 1) / accumulated) % interval == 0
        is_automatic = trainer.lightning_module.automatic_optimization
        return (trainer.global_step if is_automatic else self.total_batch_idx + 1) % interval == 0
