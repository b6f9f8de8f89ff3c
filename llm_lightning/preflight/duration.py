"""How long a step takes at the least: its matrix products, at the speed at which this device multiplies."""

import time

import torch

SIZE = {"cpu": 512, "cuda": 8192}
REPEATS = 20


def products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products, the fastest of some (about 0.1 s)."""
    size = SIZE.get(device.type, SIZE["cuda"])
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
