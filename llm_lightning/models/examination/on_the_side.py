"""Where a network is tried out: on the CPU, in float32, by plain torch, without a trace in what the caller does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import hub_kernels
from transformers.utils import logging

from llm_lightning.models.attention import register_attention


@contextmanager
def on_the_side() -> Iterator[None]:
    """Neither the caller's device, precision and gradients nor its random numbers have to do with it.

    One thread: others would only wait for each other, over sums so small that it takes twenty times as long.
    """
    register_attention()
    verbosity, dtype, threads = logging.get_verbosity(), torch.get_default_dtype(), torch.get_num_threads()
    logging.set_verbosity(logging.CRITICAL)
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        with (
            torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False), torch.no_grad(),
            torch.autocast("cpu", enabled=False), torch.compiler.set_stance("force_eager"), _without_kernels(),
        ):  # fmt: skip
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Let transformers run its own torch functions where causal-conv1d, mamba-ssm or flash-linear-attention is there.

    It takes theirs on whatever device, and they run on GPUs alone (flash-linear-attention not in float32 either); only
    an export lets it take its own.
    """
    chooser: Any = hub_kernels
    exports = chooser.is_torchdynamo_exporting
    chooser.is_torchdynamo_exporting = lambda: True
    try:
        yield
    finally:
        chooser.is_torchdynamo_exporting = exports
