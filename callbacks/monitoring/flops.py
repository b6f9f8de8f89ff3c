"""Floating point operations: what a network needs for a token, and what a device could do in a second."""

import time
from dataclasses import dataclass
from typing import Any

import torch

# Dense bf16/fp16 tensor-core peaks from the vendors' data sheets. The longer name comes first where one holds another.
# Lightning's table (`get_available_flops` of 2.6) would make MFU wrong: it takes an L40S for an L4, counts sparsity for
# H100 NVL and no tensor cores for A40, A6000 and the RTX ones, and does not find an H200, B200, A30 or AMD's.
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI355X": 2500e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one training step, forward and backward, without recomputation (PaLM, arXiv:2204.02311, appendix B).

    A token costs 6 for each weight it is multiplied with (2 forward, 2 for the input's gradient, 2 for the weight's),
    or 4 if the weight is frozen. Attention costs 12 x layers x heads x head_dim for each (query, key) pair, where
    key is not after query and in the same document; over a row of T tokens of one document that is about
    6 x layers x heads x head_dim x T a token, half of PaLM's figure, which counts the masked half too.

    Attributes:
        per_token: FLOPs of the matrix products with weights, for a token.
        per_pair: FLOPs of attention, for a pair of positions.
    """

    per_token: float
    per_pair: float

    @classmethod
    def of(cls, network: Any) -> "TokenFlops":
        """Counts a `transformers.PreTrainedModel` or a `peft.PeftModel` around one.

        The input embedding is a look-up and costs nothing; a head that is tied to it counts, once. Vectors (norms,
        biases) are left out.
        """
        head = network.get_output_embeddings()
        embedding = network.get_input_embeddings().weight
        tied = head is not None and head.weight is embedding
        per_token = sum(
            (6 if weight.requires_grad else 4) * weight.numel()
            for weight in network.parameters()
            if weight.ndim >= 2 and (weight is not embedding or tied)
        )
        config = network.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_pair = 12 * config.num_hidden_layers * config.num_attention_heads * head_dim
        return cls(per_token=per_token, per_pair=per_pair)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of a device in a dtype: from the data sheet, or measured where that does not say.

    Args:
        device: The device that trains.
        dtype: The dtype of its matrix products. Data sheets count for bf16 and fp16 alone, since what fp32 reaches
            depends on whether TF32 is allowed.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for known, flops in PEAK_FLOPS.items():
            if known in name:
                return flops
    return measured_flops(device, dtype)


@torch.no_grad()
def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest of a few square matrix products, with the threads that training uses.

    On a CPU one thread multiplies, and its own processor time counts: other work on the machine then cannot make the
    peak look lower than it is. Threads that share a core (SMT) reach less together than the figure says.

    Args:
        device: Where to measure.
        dtype: Dtype of the matrices.
        seconds: About how long to measure. 0.3 s is enough for the best of several on one CPU core.
    """
    num_threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    size = 1024 if on_cpu else 8192
    a, b = torch.ones(2, size, size, device=device, dtype=dtype)
    torch.set_num_threads(1 if on_cpu else num_threads)
    try:
        torch.mm(a, b)
        fastest = float("inf")
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            synchronize(device)
            start = clock()
            torch.mm(a, b)
            synchronize(device)
            fastest = min(fastest, clock() - start)
    finally:
        torch.set_num_threads(num_threads)
    return 2 * size**3 / fastest * (num_threads if on_cpu else 1)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what was asked of it; nothing on a CPU, which does it at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
