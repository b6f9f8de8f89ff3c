"""DeepSpeed's ZeRO: Lightning's strategy, made known to transformers, with losses divided by the tokens of a step."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from llm_lightning.errors import UserError
from llm_lightning.strategies.trust import refuse_pickles


class ZeROStrategy(DeepSpeedStrategy):
    """Optimizer states (stage 1), gradients too (2), or weights too (3), sharded over all ranks.

    DeepSpeed has the gradients to itself, so that losses are divided before the backward pass: by the tokens of a
    micro-batch over all ranks. Where `trainer.accumulate_grad_batches` is above 1, micro-batches with few tokens weigh
    as much as others.

    Args:
        trust_checkpoints: go on from DeepSpeed's checkpoints, and validate and predict with them. They are pickles:
            reading one runs whatever code it holds, so that this is for run folders that nobody else could write to.
        kwargs: see `DeepSpeedStrategy`.

    Raises:
        UserError: deepspeed is not installed; a checkpoint is to be read, and `trust_checkpoints` is not set.
    """

    def __init__(self, trust_checkpoints: bool = False, **kwargs: Any) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "trainer.strategy=ZeROStrategy needs deepspeed, which is not installed: pip install "
                "'llm-lightning[deepspeed]', or take --config configs/trainer/fsdp.yaml, which needs nothing."
            )
        super().__init__(**kwargs)
        self.trust_checkpoints = trust_checkpoints
        if not trust_checkpoints:
            rank_zero_info(
                "DeepSpeed's checkpoints are pickles: a run that is started again will go on from them only with "
                "--trainer.strategy.trust_checkpoints=true, which may be given now."
            )
        if self.config is not None:
            # Of optimizers for offloaded states DeepSpeed accepts only its own, which need a compiler.
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)
            # Lightning would open the loaders to find this number for DeepSpeed's log, before loggers are ready.
            self.config.setdefault("train_micro_batch_size_per_gpu", 1)
        self._known_to_transformers: Any = None

    @contextmanager
    @override
    def model_sharded_context(self) -> Iterator[None]:
        from transformers.integrations import HfDeepSpeedConfig

        self._init_config_if_needed()
        if self.zero_stage_3:
            # Without it weights would be read into the parts of other weights, and nothing would say so. transformers
            # holds it weakly.
            self._known_to_transformers = HfDeepSpeedConfig(self.config)
        with super().model_sharded_context():
            yield

    @override
    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        module: Any = self.lightning_module
        return super().backward(closure_loss * module.step.newest_weight(module.ranks), *args, **kwargs)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if Path(checkpoint_path).is_dir():
            refuse_pickles(Path(checkpoint_path), self.trust_checkpoints)
        return super().load_checkpoint(checkpoint_path, weights_only)
