"""Pretraining that writes what each step took, for benchmarks/host_work.py."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_lightning.modules import CausalPretraining
from llm_lightning.objectives.language import TokenLoss


class TimedPretraining(CausalPretraining):
    """Seconds of the thread's processor time, a step a row: `network`, forward and backward, `optimizer`, and `host`.

    Args:
        result: JSON file.
        kwargs: see `CausalPretraining`.
    """

    def __init__(self, *args: Any, result: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.result = Path(result)
        self.rows: list[dict[str, float]] = []
        self._spent = {"network": 0.0, "optimizer": 0.0}
        self._since: float | None = None
        self._ready = 0.0

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        begin = time.thread_time()
        yield
        self._spent[name] += time.thread_time() - begin

    def batch_loss(self, *args: Any, **kwargs: Any) -> TokenLoss:
        with self._counted("network"):
            return super().batch_loss(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self._counted("network"):
            super().backward(loss, *args, **kwargs)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.trainer.optimizers[0].register_step_post_hook(lambda *_: self._optimizer_done())

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        self._ready = time.thread_time()  # the last of the closure that the optimizer's step begins with

    def _optimizer_done(self) -> None:
        self._spent["optimizer"] += time.thread_time() - self._ready

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.thread_time()
        if self._since is not None:
            whole = now - self._since
            self.rows.append(self._spent | {"host": whole - sum(self._spent.values())})
        self._since, self._spent = now, {"network": 0.0, "optimizer": 0.0}

    def on_train_end(self) -> None:
        self.result.write_text(json.dumps(self.rows))
