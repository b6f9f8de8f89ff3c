"""What a strategy adds on each rank, and how it would shard a network, known without the other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from llm_lightning.models.loading.sharding import Sharding, hybrid_mesh
from llm_lightning.strategies.fsdp2 import FSDP2Strategy


def is_known(strategy: Strategy) -> bool:
    """Whether it is known what a strategy takes."""
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy))


def adds_buckets(strategy: Strategy) -> bool:
    """Whether gradients lie in a strategy's own buffers, too."""
    return isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("gradient_as_bucket_view", False)


@contextmanager
def pretended_sharding(trainer: Trainer) -> Iterator[Sharding | None]:
    """How the trainer's strategy will shard, among ranks that do not exist; None where each holds the whole network."""
    strategy = trainer.strategy
    if not isinstance(strategy, FSDP2Strategy):
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    data, tensor = strategy.sizes
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=data * tensor)
    try:
        names = ("data_parallel", "tensor_parallel")
        mesh = init_device_mesh(strategy.root_device.type, (data, tensor), mesh_dim_names=names)
        yield strategy.sharding_over(hybrid_mesh(mesh, strategy.replicas) if strategy.replicas > 1 else mesh)
    finally:
        dist.destroy_process_group()
