"""The precision a device is fast at, for runs that do not name one."""

import time

import torch

PROBE_SIZE = 768
MIN_SPEEDUP = 1.5


def default_precision(accelerator: str) -> str:
    """`trainer.precision` for this machine.

    GPUs with bfloat16 units train in bf16-mixed. A CPU that reports bfloat16 instructions may run them at twice or at
    half the speed of float32, depending on the maker and on AMX, so there both are timed (about 50 ms).

    Args:
        accelerator: `cuda`, `cpu`, ... as Lightning resolved it.
    """
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator == "cpu" and _bf16_speedup() >= MIN_SPEEDUP:
        return "bf16-mixed"
    return "bf16-mixed" if accelerator == "tpu" else "32-true"


def _bf16_speedup() -> float:
    return _matmul_seconds(torch.float32) / _matmul_seconds(torch.bfloat16)


def _matmul_seconds(dtype: torch.dtype) -> float:
    x = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    return min(seconds)
