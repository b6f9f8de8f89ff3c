"""A network sharded over all ranks (FSDP2): built empty, sharded, then loaded; no rank ever holds all of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_lightning.errors import UserError

HYBRID = ("replicate", "shard")
"""Dimensions of a mesh: which replica, and which part of the weights."""

RUN = "run_gathered"
"""The method of a sharded network through which everything goes that reads its embeddings or its head."""


@dataclass(frozen=True)
class Sharding:
    """How a strategy shards a network.

    Args:
        mesh: with the dimensions `data_parallel` and `tensor_parallel`, or a `hybrid_mesh`.
        device: of this rank.
        dtype: that weights are gathered and multiplied in, while those that are trained, and the sums of gradients,
            keep the one they have; None: the one they have.
    """

    mesh: DeviceMesh
    device: torch.device
    dtype: torch.dtype | None = None

    def apply(self, network: nn.Module) -> None:
        """Shard a network or a critic in place: each layer is gathered while it is needed, the rest with the root.

        The forward pass has to begin at the root: by its own `forward`, or by `RUN`.

        Raises:
            UserError: the layers cannot be shared by the ranks of a tensor-parallel group.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        if self.mesh["tensor_parallel"].size() > 1:
            share_layers(network, self.mesh["tensor_parallel"])
        mesh = self.mesh[HYBRID] if set(HYBRID) <= set(self.mesh.mesh_dim_names or ()) else self.mesh["data_parallel"]
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=self.dtype and torch.float32, cast_forward_inputs=False
        )
        for layer in layers_of(network):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
        setattr(network, RUN, _call)
        register_fsdp_forward_method(network, RUN)


def hybrid_mesh(mesh: DeviceMesh, replicas: int) -> DeviceMesh:
    """The ranks of a mesh in one with `replicate`, `shard` and `tensor_parallel`; `data_parallel` is the first two."""
    sizes = (replicas, mesh["data_parallel"].size() // replicas, mesh["tensor_parallel"].size())
    hybrid = init_device_mesh(mesh.device_type, sizes, mesh_dim_names=(*HYBRID, "tensor_parallel"))
    hybrid[HYBRID]._flatten("data_parallel")
    return hybrid


def share_layers(network: Any, mesh: DeviceMesh) -> None:
    """Tensor parallelism (Megatron-LM, arXiv:1909.08053) by the plan in the architecture's config.

    Raises:
        UserError: there is no plan, or one that asks for more than halves of matrices.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    field = f"trainer.strategy.tensor_parallel_size={mesh.size()}"
    config = network.config.get_text_config()
    styles: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    plan = getattr(config, "base_model_tp_plan", None) or {}
    if not plan or not styles.keys() >= set(plan.values()):
        raise UserError(f"{field}: transformers has no plan of plain matrices for {config.model_type}; set it to 1.")
    for name in ("num_attention_heads", "num_key_value_heads"):
        if getattr(config, name) % mesh.size():
            raise UserError(f"{field} does not divide the {getattr(config, name)} heads of {name}; set it to 1.")
    if hasattr(network, "peft_config") or any("lora" in name for name, _ in network.named_modules()):
        raise UserError(f"{field} does not go with model.peft; set it to 1.")
    parallelize_module(network.get_decoder(), mesh, {name: styles[style]() for name, style in plan.items()})


def layers_of(network: Any) -> list[nn.Module]:
    """The decoder's layers; none for a critic, whose network is sharded by itself."""
    if not isinstance(network, PreTrainedModel):
        return []
    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, **options)


def run_gathered(network: Any, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`function(*args)`, with the embeddings and the head of `network` gathered where they are sharded."""
    return getattr(network, RUN, _call)(function, *args, **options)


def is_gathered_to_run(network: Any) -> bool:
    """Whether ranks hold parts of the weights, so that all of them have to call `run_gathered` together."""
    return hasattr(network, RUN)


@contextmanager
def all_gathered(network: nn.Module) -> Iterator[None]:
    """All weights gathered on every rank: once, however many forward passes there are in this context.

    Inside of it ranks do not wait for each other. It has to be entered inside of `run_gathered`.
    """
    if not hasattr(network, RUN):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            if module is not network:  # the root is gathered until its next backward pass, as after any forward pass
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()


def reshard(network: nn.Module) -> None:
    """Free what a forward pass left gathered, so that every parameter is the shard that is trained."""
    if not hasattr(network, RUN):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(tensor: Any) -> Tensor:
    """A parameter gathered from all its shards; all ranks have to ask for it."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    if not is_zero3(tensor):
        return tensor.detach()
    with gathered_zero3([tensor]):
        return tensor.detach().clone()


def gathered_zero3(parameters: Iterable[Any], *, to_change: bool = False) -> AbstractContextManager[None]:
    """These parameters whole, where DeepSpeed has them; what the first rank writes to them is kept if `to_change`."""
    parameters = list(parameters)
    if not any(map(is_zero3, parameters)):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if to_change else None)


def shape_of(tensor: Any) -> torch.Size:
    """The shape of the whole tensor, however it is sharded."""
    return tensor.ds_shape if is_zero3(tensor) else tensor.shape


def is_zero3(tensor: Any) -> bool:
    """Whether a parameter is in DeepSpeed's hands, which gathers it for calls of the module that it belongs to."""
    return hasattr(tensor, "ds_id")


def is_sharded(network: nn.Module) -> bool:
    """Whether this rank holds only a shard of its weights."""
    return hasattr(network, RUN) or any(is_zero3(p) for p in network.parameters())


@torch.no_grad()
def load_weights(
    network: PreTrainedModel, folder: Path | None, device: torch.device, names: Mapping[str, str]
) -> set[str]:
    """Load the weights of a network that was built without any, each rank its own shards.

    What an adapter brought with it stays. Of `folder` a rank reads its own shard of each tensor and nothing else.

    Args:
        network: on the meta device but for adapters, already sharded.
        folder: with safetensors; None: start from scratch, with the same numbers as on one rank.
        device: of this rank.
        names: for each parameter of the network its name in the folder; parameters that are not in here stay.

    Returns:
        Names of parameters that are not in the folder; they are not initialized.
    """
    kept = {name: t.detach().clone() for name, t in _tensors(network) if not t.is_meta}
    network.to_empty(device=device)
    for name, tensor in _tensors(network):
        if name in kept:
            tensor.copy_(kept[name])
    network.tie_weights()
    if folder is None:
        _initialize(network, network, set())
        return set()
    _initialize_buffers(network)
    return _read(network, folder, names)


def initialize(network: PreTrainedModel) -> None:
    """Start weights from scratch by the architecture's own rules."""
    network.tie_weights()
    _initialize(network, network, set())


@torch.no_grad()
def _initialize(module: nn.Module, owner: PreTrainedModel, done: set[int]) -> None:
    """One module after the other, each of them whole and in the same order on any number of ranks."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    for child in module.children():
        _initialize(child, owner, done)
    own = dict(module.named_parameters(recurse=False))
    if own and done.issuperset(map(id, own.values())):
        return  # a head that is tied to the embeddings
    done.update(map(id, own.values()))
    shards = {name: p for name, p in own.items() if isinstance(p, DTensor)}
    for name, shard in shards.items():
        module._parameters[name] = nn.Parameter(torch.empty(shard.shape, dtype=shard.dtype, device=shard.device))
    owner._initialize_weights(module)
    for name, shard in shards.items():
        full = module._parameters[name]
        assert full is not None
        shard.copy_(distribute_tensor(full.detach(), shard.device_mesh, shard.placements))
        module._parameters[name] = shard


def _initialize_buffers(network: PreTrainedModel) -> None:
    """Rotary embeddings and the like, which are in no file."""
    for module in network.modules():
        if any(True for _ in module.buffers(recurse=False)) and not any(True for _ in module.parameters(recurse=False)):
            network._init_weights(module)


def _read(network: PreTrainedModel, folder: Path, names: Mapping[str, str]) -> set[str]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    there = reader.read_metadata().state_dict_metadata
    own = {names[name]: tensor.detach() for name, tensor in _tensors(network) if name in names}
    for name in own.keys() & there.keys():
        if own[name].shape != there[name].size:  # type: ignore[union-attr]
            raise UserError(f"{folder}: {name} is not of the shape that its config.json asks for.")
    dcp.load({name: tensor for name, tensor in own.items() if name in there}, storage_reader=reader)
    return own.keys() - there.keys()


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()
