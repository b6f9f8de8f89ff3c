"""A model of what FSDP2 costs from 8 to 1,024 GPUs; nothing is measured here.

    python benchmarks/scaling_model.py

Each rank gathers the weights twice a step (2 bytes a parameter) and reduces gradients once (4 bytes), layer by layer,
in rings over all ranks, while it computes; what does not fit behind the computing is waited for. Activations are
recomputed, so that a token costs 8 FLOPs a parameter.
"""

from dataclasses import dataclass

BYTES = 2 + 2 + 4
FLOPS = 8


@dataclass(frozen=True)
class Cluster:
    """H100 nodes of eight: dense bf16, NVLink in a node, one 400 Gbit/s port a GPU between nodes.

    Args:
        flops: a GPU's peak.
        busy: share of it that computing alone reaches.
        near, far: bytes/s of a GPU in a node and between nodes, of which a collective reaches `reached`.
        hop: seconds from one rank of a ring to the next.
    """

    flops: float = 989e12
    busy: float = 0.4
    near: float = 450e9
    far: float = 50e9
    reached: float = 0.8
    hop: float = 5e-6


def step(num_gpus: int, parameters: float, layers: int, tokens: int, cluster: Cluster) -> tuple[float, float]:
    """Seconds of computing and of communication."""
    computing = FLOPS * parameters * tokens / (cluster.flops * cluster.busy)
    bandwidth = cluster.reached * (cluster.near if num_gpus <= 8 else cluster.far)
    volume = BYTES * parameters * (num_gpus - 1) / num_gpus
    return computing, volume / bandwidth + 3 * layers * (num_gpus - 1) * cluster.hop


def main() -> None:
    for name, parameters, layers in (("8B", 8e9, 32), ("70B", 70e9, 80)):
        print(f"{name}: seconds of communication, and tokens/s as a share of computing alone, by tokens a GPU and step")
        for num_gpus in (8, 64, 256, 1024):
            cells = []
            for tokens in (4096, 8192, 16384, 32768):
                computing, talking = step(num_gpus, parameters, layers, tokens, Cluster())
                cells.append(f"{tokens:,}: {computing / max(computing, talking):.0%}")
            print(f"  {num_gpus:5,} GPUs {talking:6.2f} s   " + "   ".join(cells))


if __name__ == "__main__":
    main()
