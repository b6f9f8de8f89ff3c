"""What the machine is: versions, and the peak of its matrix products; run as `python -m benchmarks.on_gpu.device`."""

import argparse
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.on_gpu.figures import append

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchao", "triton", "tokenizers", "numpy")


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def flops(size: int, device: str, make: str, seconds: float = 1.0) -> float:
    """FLOP/s of products of (size, size) matrices, over about that time, after a warm-up.

    Random numbers: on zeros a GPU draws less power, and is faster than in anything real.
    """
    left, right = (torch.randn(size, size, device=device) for _ in range(2))

    def product() -> Tensor:
        if make == "float8":
            one = torch.ones((), device=device)
            return torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        return a @ b

    if make == "float8":
        a8, b8 = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t().contiguous().t()
    else:
        a, b = (x.to(getattr(torch, make)) for x in (left, right))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    count, spent = 1, 0.0
    while spent < seconds / 2:
        count *= 2
        wait()
        begin = time.perf_counter()
        for _ in range(count):
            product()
        wait()
        spent = time.perf_counter() - begin
    return 2 * size**3 * count / spent


def copied(num_bytes: int, device: str) -> float:
    """Bytes/s that a copy on the device reads and writes."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    target.copy_(source)
    wait()
    begin = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    wait()
    return 10 * num_bytes / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else platform.machine()
    versions = {package: (installed(package), "") for package in PACKAGES} | {"python": (platform.python_version(), "")}
    if on_gpu:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**20
        versions |= {"memory": (round(memory), "MB"), "cuda": (torch.version.cuda, "")}
    append(args.json, "machine", name, "all", versions)
    size = 8192 if on_gpu else 256
    for make in ("bfloat16", "float8") if on_gpu else ("bfloat16",):
        if make == "float8" and torch.cuda.get_device_capability() < (8, 9):
            continue
        append(args.json, "peak", f"{make} product", "all", {"reached": (flops(size, args.device, make) / 1e12, "TFLOP/s")}, size=size)  # fmt: skip  # noqa: E501
    reached = copied(2**32 if on_gpu else 2**24, args.device) / 1e9
    append(args.json, "peak", "copy", "all", {"reached": (reached, "GB/s")})


if __name__ == "__main__":
    main()
