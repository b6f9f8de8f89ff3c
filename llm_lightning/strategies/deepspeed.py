"""DeepSpeed's ZeRO: Lightning's strategy, made known to transformers, with losses divided by the tokens of a step."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from typing_extensions import override

from llm_lightning.errors import UserError


class ZeROStrategy(DeepSpeedStrategy):
    """Optimizer states (stage 1), gradients too (2), or weights too (3) in parts on all ranks.

    DeepSpeed has the gradients to itself, so that losses are divided before the backward pass: by the tokens of a
    micro-batch over all ranks. Where `trainer.accumulate_grad_batches` is above 1, micro-batches with few tokens weigh
    as much as others.

    Args:
        kwargs: see `DeepSpeedStrategy`.

    Raises:
        UserError: deepspeed is not installed.
    """

    def __init__(self, **kwargs: Any) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "trainer.strategy=ZeROStrategy needs deepspeed, which is not installed: pip install "
                "'llm-lightning[deepspeed]', or take --config configs/trainer/fsdp.yaml, which needs nothing."
            )
        super().__init__(**kwargs)
        if self.config is not None:
            # Of optimizers for offloaded states DeepSpeed accepts only its own, which need a compiler.
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)
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
        return super().backward(closure_loss * module.micro_batch_weight(), *args, **kwargs)
