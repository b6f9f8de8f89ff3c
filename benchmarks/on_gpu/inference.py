"""Reading and writing of a quantized or 2:4 sparse network, eager and compiled, beside the same in bfloat16.

Run as `python -m benchmarks.on_gpu.inference`. One text a network from random weights: reading is one pass over a
prompt, writing is greedy, a token a pass, over keys and values of a fixed size, so that the compiled pass replays as a
CUDA graph.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.on_gpu.figures import append
from benchmarks.workload import SHAPES

SCHEMES = ("bfloat16", "int8", "int8-dynamic", "int4", "float8", "float8-dynamic", "2:4")
NEEDS = {"int4": (8, 0), "float8-dynamic": (8, 9), "2:4": (8, 0)}
"""Least compute capability."""


def quantize(network: nn.Module, scheme: str) -> None:
    """Change the layers of a decoder; embeddings and head stay."""
    layers = network.model.layers  # type: ignore[union-attr]
    if scheme == "2:4":
        for module in layers.modules():  # type: ignore[union-attr]
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(sparse(module.weight.detach()), requires_grad=False)
        return
    from torchao import quantization as ao

    configs: dict[str, Any] = {
        "int8": lambda: ao.Int8WeightOnlyConfig(),
        "int8-dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(),
        "int4": lambda: ao.Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d"),
        "float8": lambda: ao.Float8WeightOnlyConfig(),
        "float8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
    }
    ao.quantize_(layers, configs[scheme]())


def sparse(weight: Tensor) -> Tensor:
    """Two of every four numbers, the larger ones, as torch's kernels for 2:4 take them."""
    from torch.sparse import to_sparse_semi_structured

    groups = weight.unflatten(1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.abs().topk(2, dim=2).indices, True)
    return to_sparse_semi_structured((groups * kept).flatten(1))


class Reader:
    """One text, over keys and values of a fixed size."""

    def __init__(self, network: Any, most: int, device: str, compiled: bool) -> None:
        self.network, self.device = network, device
        self.forward = torch.compile(network.forward, mode="reduce-overhead") if compiled else network.forward
        self.read = torch.compile(network.forward) if compiled else network.forward
        self.cache = StaticCache(network.config, max_cache_len=most)  # one for all runs: a graph knows its addresses
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """The cache makes its tensors at the first use, which belongs in no graph."""
        self.network(input_ids=self.places(0, 1), past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def wait(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def run(self, prompt: Tensor, num_new: int) -> tuple[float, float]:
        """Seconds of reading and of writing."""
        self.cache.reset()
        begin = self.wait()
        options = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        token = self.read(input_ids=prompt, position_ids=self.places(0, prompt.shape[1]), **options).logits.argmax(-1)
        between = self.wait()
        for place in range(prompt.shape[1], prompt.shape[1] + num_new):
            torch.compiler.cudagraph_mark_step_begin()
            logits = self.forward(input_ids=token, position_ids=self.places(place, 1), **options).logits
            token = logits.argmax(-1).clone()  # a replay writes over what the one before gave
        return between - begin, self.wait() - between

    def places(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, device=self.device)[None]


def measure(network: Any, args: argparse.Namespace, compiled: bool) -> dict[str, tuple[Any, str]]:
    """The better of two, after two that warm up."""
    reader = Reader(network, args.prompt + args.new, args.device, compiled)
    prompt = torch.randint(network.config.vocab_size, (1, args.prompt), device=args.device)
    runs = [reader.run(prompt, args.new) for _ in range(4)][2:]
    reading, writing = (min(seconds) for seconds in zip(*runs, strict=True))
    held = sum(tensor_bytes(tensor) for tensor in (*network.parameters(), *network.buffers())) / 2**20
    return {
        "prefill_tokens_per_s": (args.prompt / reading, "tokens/s"),
        "decode_tokens_per_s": (args.new / writing, "tokens/s"),
        "weights_mb": (held, "MB"),
    }


def tensor_bytes(tensor: Any) -> int:
    """What it takes, whatever it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--model", choices=sorted({name for name, _ in SHAPES}), required=True)
    parser.add_argument("--prompt", type=int, required=True, help="tokens")
    parser.add_argument("--new", type=int, required=True, help="tokens")
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    needed = NEEDS.get(args.scheme)
    settings = {"prompt": args.prompt, "new": args.new, "device": args.device}
    if needed and (args.device == "cpu" or torch.cuda.get_device_capability() < needed):
        why = {"left out": (f"needs compute capability {needed[0]}.{needed[1]}", "")}
        return append(args.json, "inference", args.scheme, args.model, why, **settings)
    config = SHAPES[args.model, args.device].config | {"max_position_embeddings": args.prompt + args.new}
    torch.manual_seed(0)
    with torch.device(args.device):
        network = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16).eval()
    if args.scheme != "bfloat16":
        quantize(network, args.scheme)
    for compiled in (False, True):
        name = f"{args.scheme}-compile" if compiled else args.scheme
        append(args.json, "inference", name, args.model, measure(network, args, compiled), **settings)
    return None


if __name__ == "__main__":
    main()
