"""FSDP2, and tensor parallelism with it: Lightning's ModelParallelStrategy with our sizes and our checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.training_loop import is_accumulating
from llm_lightning.checkpoints.checkpoint_io import METADATA_FILE, AtomicCheckpointIO
from llm_lightning.checkpoints.sharded_reader import METADATA_CHECKSUM, PartsReader, load_parts
from llm_lightning.checkpoints.sharded_writer import BackgroundWriter, unfinished_folder, write_sharded
from llm_lightning.errors import UserError
from llm_lightning.models.loading.sharding import Sharding, hybrid_mesh
from llm_lightning_safety.files import remove

SHARDED = "sharded"
"""The key of a list of those that were in the checkpoint beside weights and optimizers, and are in its parts."""


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimizer states sharded over all ranks; checkpoints too, for any number of ranks.

    Lightning's own, left to itself, makes the ranks of a node one tensor-parallel group. Its checkpoints are complete
    once they have their name. What callbacks add to one by names of parameters, sharded as these are, is in parts too.

    Args:
        tensor_parallel_size: ranks that share each layer; they see the same data. Best within a node.
        data_parallel_size: ranks with data of their own, over which the weights are sharded; by default all others.
        replicas: groups that these ranks are divided into, each of which holds all the weights, sharded within it
            (hybrid sharding). Best one for each node or few: weights are gathered within a group, and only the sums of
            gradients go between groups, once a step. A rank then holds `replicas` times as much.
        asynchronous_checkpoints: write those that a run can go on from while it trains on: it waits for a copy in the
            hosts' memory alone, which a rank needs its shard of weights and optimizer for. A checkpoint is whole a
            little later than its step; the last one before the process ends.
        gather_dtype: that weights are gathered and multiplied in; by default what `trainer.precision` says (bfloat16
            under `bf16-mixed`). For devices that have no autocast.
        kwargs: see `ModelParallelStrategy`.
    """

    keeps_shards = True

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        data_parallel_size: Literal["auto"] | int = "auto",
        replicas: int = 1,
        asynchronous_checkpoints: bool = False,
        gather_dtype: Literal["bfloat16"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_parallel_size, tensor_parallel_size, **kwargs)
        self.replicas = replicas
        self.asynchronous_checkpoints = asynchronous_checkpoints
        self._background = BackgroundWriter()
        self.gather_dtype = gather_dtype

    @property
    def sharding(self) -> Sharding:
        """How networks are to be sharded."""
        return self.sharding_over(self.device_mesh)

    def sharding_over(self, mesh: DeviceMesh) -> Sharding:
        """How networks are to be sharded over the ranks of a mesh."""
        mixed = self.gather_dtype is not None or str(self.precision_plugin.precision) == "bf16-mixed"
        return Sharding(mesh, self.root_device, torch.bfloat16 if mixed else None)

    @property
    def sizes(self) -> tuple[int, int]:
        """Ranks that have data of their own, and of those the ranks that share each layer."""
        tensor, data = int(self._tensor_parallel_size), self._data_parallel_size
        return self.num_nodes * self.num_processes // tensor if data == "auto" else int(data), tensor

    @override
    def setup_environment(self) -> None:
        world_size, tensor = self.num_nodes * self.num_processes, self._tensor_parallel_size
        if self._data_parallel_size == "auto":
            self._data_parallel_size = world_size // int(tensor)
        if int(self._data_parallel_size) * int(tensor) != world_size:
            raise UserError(
                f"trainer.strategy: tensor_parallel_size={tensor} and data_parallel_size={self._data_parallel_size} do "
                f"not make {world_size} devices (trainer.devices times trainer.num_nodes)."
            )
        if self.replicas < 1 or int(self._data_parallel_size) % self.replicas:
            raise UserError(
                f"trainer.strategy: replicas={self.replicas} does not divide the {self._data_parallel_size} ranks that "
                "have data of their own."
            )
        super().setup_environment()
        if self.replicas > 1:
            self._device_mesh = hybrid_mesh(self.device_mesh, self.replicas)
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._device_mesh

    @override
    def pre_backward(self, closure_loss: torch.Tensor) -> None:
        super().pre_backward(closure_loss)
        module = self.lightning_module
        if self.replicas > 1 and module is not None and module.automatic_optimization:
            # The sums of micro-batches go between the replicas with the last one of a step.
            is_last = not is_accumulating(module.trainer)
            for each in module.modules():
                if isinstance(each, FSDPModule):
                    each.set_requires_all_reduce(is_last, recurse=False)

    def meet(self) -> None:
        """Start the other ranks, if nobody did, and join them; later calls, and Lightning's own, find that done."""
        if self.launcher is None:
            self._setup_distributed()
        else:
            self.launcher.launch(self._setup_distributed)

    def first_said(self, words: str | None) -> str | None:
        """What the first of the ranks that have something to say says, on all of them; every rank must call it."""
        own = self.world_size if words is None else self.global_rank
        rank = int(self.reduce(torch.tensor(own, device=self.root_device), reduce_op="min"))
        return None if rank == self.world_size else self.broadcast(words, src=rank)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        # Neither copied nor moved: the module takes out what is not kept, and the writer moves the rest piece by piece.
        assert self.model is not None
        return get_model_state_dict(self.model)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        self._background.wait()
        if self.is_global_zero:
            remove(unfinished_folder(path))  # of a killed run
        self.barrier("save_checkpoint")
        optimizers = {_optimizer_key(i): state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
        checkpoint[SHARDED] = [key for key, value in checkpoint.items() if key != "state_dict" and _is_sharded(value)]
        parts = {key: checkpoint.pop(key) for key in ("state_dict", *checkpoint[SHARDED])} | optimizers
        if self.asynchronous_checkpoints and optimizers:
            self._background.begin(parts, checkpoint, path)
            return
        write_sharded(parts, checkpoint, path)
        self.barrier("save_checkpoint")

    @override
    def teardown(self) -> None:
        self._background.wait()
        super().teardown()

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers from a sharded folder, or from one file of another strategy.

        What does not fit this network is left as it is: `on_load_checkpoint` gets the shapes of all, to compare.
        """
        self._background.wait()
        path = Path(self.broadcast(checkpoint_path))
        return self._load_file(path) if path.is_file() else self._load_folder(path)

    def _load_folder(self, path: Path) -> dict[str, Any]:
        assert self.model is not None
        checkpoint = AtomicCheckpointIO().load_checkpoint(path / METADATA_FILE)
        reader = PartsReader(path, checkpoint.get(METADATA_CHECKSUM))
        there = reader.read_metadata().state_dict_metadata
        saved = {name: torch.empty(t.size, device="meta") for name, t in _entry(there, "state_dict").items()}
        checkpoint["state_dict"] = saved
        own: dict[str, Any] = get_model_state_dict(self.model)
        fitting = {name: own[name] for name, t in saved.items() if name in own and own[name].shape == t.shape}
        if len(fitting) < len(saved):
            return checkpoint
        load_parts({"state_dict": fitting}, reader)
        set_model_state_dict(self.model, fitting, options=StateDictOptions(strict=False))
        for i, optimizer in enumerate(self.optimizers):
            key = _optimizer_key(i)
            if any(name.startswith(f"{key}.") for name in there):  # none with the weights of a validation alone
                state = {key: get_optimizer_state_dict(self.model, optimizer)}
                load_parts(state, reader)
                set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state[key])
        for key in checkpoint.pop(SHARDED, ()):
            tensors = _entry(there, key)
            checkpoint[key] = {
                n: torch.empty_like(own[n], dtype=t.properties.dtype) for n, t in tensors.items() if n in own
            }
            load_parts({key: checkpoint[key]}, reader)
        return checkpoint

    def _load_file(self, path: Path) -> dict[str, Any]:
        assert self.model is not None
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        saved: dict[str, Any] = checkpoint["state_dict"]
        own: dict[str, Any] = get_model_state_dict(self.model)
        if any(name not in own or own[name].shape != tensor.shape for name, tensor in saved.items()):
            return checkpoint
        set_model_state_dict(self.model, saved, options=StateDictOptions(full_state_dict=True, strict=False))
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            set_optimizer_state_dict(
                self.model,
                optimizer,
                optim_state_dict=_by_name(state, optimizer, names),
                options=StateDictOptions(full_state_dict=True),
            )
        return checkpoint


def _entry(there: Mapping[str, Any], key: str) -> dict[str, TensorStorageMetadata]:
    """The tensors of one of a checkpoint's entries, by their names in it."""
    found = {name.removeprefix(f"{key}."): t for name, t in there.items() if name.startswith(f"{key}.")}
    return {name: t for name, t in found.items() if isinstance(t, TensorStorageMetadata)}


def _is_sharded(entry: Any) -> bool:
    return isinstance(entry, dict) and any(isinstance(value, DTensor) for value in entry.values())


def _optimizer_key(index: int) -> str:
    return f"optimizer_{index}"


def _by_name(state: dict[str, Any], optimizer: Optimizer, names: dict[int, str]) -> dict[str, Any]:
    """An optimizer's state with the names of parameters for their numbers."""
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [group | {"params": [order[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {order[i]: one for i, one in state["state"].items()}, "param_groups": groups}
