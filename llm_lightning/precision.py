"""The precision a device is fast at, for runs that do not name one, and the fastest exact float32 products."""

import time
from collections.abc import Callable

import torch

PROBE_SIZE = 768
MIN_SPEEDUP = 1.5
FLOAT32_ERROR = 1e-5
"""Relative; products in float32 stay below 1e-6, those that round to bfloat16 are near 1e-2."""


def use_fast_float32() -> None:
    """Let float32 matrix products on CPU go through oneDNN where that is faster and just as exact.

    torch calls MKL, which runs AVX2 code on AMD processors. The precision `medium` permits oneDNN, which has AVX512
    kernels for them: 2.3x the speed on Zen 5 at an error of 8e-7. Where the processor has AMX the same setting rounds
    to bfloat16, so both speed and error are probed (about 40 ms), and the setting is taken back if either is worse.
    """
    x = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    exact = x.double() @ x.double()
    seconds = _seconds(lambda: x @ x)
    torch.set_float32_matmul_precision("medium")
    error = ((x @ x - exact).norm() / exact.norm()).item()
    if error > FLOAT32_ERROR or _seconds(lambda: x @ x) > 0.9 * seconds:
        torch.set_float32_matmul_precision(before)


def default_precision(accelerator: str) -> str:
    """`trainer.precision` for this machine.

    GPUs with bfloat16 units train in bf16-mixed. A CPU that reports bfloat16 instructions may run them at three times
    or at half the speed of float32, depending on the maker and on AMX, so there both are timed (about 20 ms).

    Args:
        accelerator: `cuda`, `cpu`, ... as Lightning resolved it.
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
