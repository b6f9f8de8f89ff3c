"""The precision a device is fast at, for runs that do not name one, and the fastest exact float32 products."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator

from llm_lightning.run.folder import saved_precision

PROBE_SIZE = 768
MIN_SPEEDUP = 1.5


def choose_precision(given: Any, accelerator: str, resumed: Path | None) -> Any:
    """`trainer.precision`; what was chosen is part of the run, and a resumed run reads it there.

    Args:
        given: what was asked for; None: the choice is free.
        accelerator: `trainer.accelerator`. On CPU the fastest exact float32 products are set too.
        resumed: the folder of the run that may go on; None for none.
    """
    if accelerator in ("auto", "gpu"):
        accelerator = accelerator_here()
    if accelerator == "cpu":
        use_fast_float32()
    saved = saved_precision(resumed) if given is None and resumed is not None else None
    return given if given is not None else saved or default_precision(accelerator)


def accelerator_here() -> str:
    """What Lightning takes for `trainer.accelerator=auto` on this machine."""
    kinds: dict[str, type[Accelerator]] = {"tpu": XLAAccelerator, "mps": MPSAccelerator, "cuda": CUDAAccelerator}
    return next((name for name, kind in kinds.items() if kind.is_available()), "cpu")


def use_fast_float32() -> None:
    """Let float32 matrix products on an AMD processor go through oneDNN, which is faster there and just as exact.

    torch calls MKL, which runs AVX2 code on AMD's. The precision `medium` permits oneDNN, which has AVX512 kernels for
    them: 2.3x the speed on Zen 5 at an error of 8e-7. Where a processor has AMX the same setting would round to
    bfloat16. What decides is the processor and no stopwatch, which tells another tale on a busy machine: a run that is
    resumed has to multiply as it did before.
    """
    features = torch.cpu.get_capabilities()
    is_amd = str(features.get("cpu_name", "")).startswith("AMD")
    if is_amd and features.get("avx512_f") and not features.get("amx_bf16"):
        torch.set_float32_matmul_precision("medium")


def default_precision(accelerator: str) -> str:
    """`trainer.precision` for this machine.

    GPUs with bfloat16 units train in bf16-mixed. A CPU that reports bfloat16 instructions may run them at three times
    or at half the speed of float32, depending on the maker and on AMX, so there both are timed (about 20 ms).

    Args:
        accelerator: `cuda`, `cpu`, ...; for `auto` what `accelerator_here` finds.
    """
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator == "cpu":
        single, half = (torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        speedup = _seconds(lambda: single @ single) / _seconds(lambda: half @ half)
        return "bf16-mixed" if speedup >= MIN_SPEEDUP else "32-true"
    return "bf16-mixed" if accelerator == "tpu" else "32-true"


def _seconds(call: Callable[[], object]) -> float:
    """The fastest of five, so that a busy machine does not decide."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
