"""Pruning a network block by block and layer by layer, each by the inputs that the pruned ones before it leave."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from tqdm import tqdm

from callbacks.artifacts.random_state import generators_kept
from callbacks.errors import CallbackError
from callbacks.network import base_network, evaluating, has_adapter, is_sharded
from callbacks.pruning.sparse_gpt import SparseGPT
from callbacks.pruning.structures import Structure
from callbacks.pruning.weights import Weight, decoder_layers, reduce_sum


class _EnoughError(Exception):
    """What is wanted of a forward pass has been seen."""


class _Call(NamedTuple):
    """How a block is called for a micro-batch.

    Args:
        states: (B, T, H) hidden states that it reads.
        args, kwargs: its other arguments.
    """

    states: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def check_whole(model: Any, weights: Sequence[Weight]) -> None:
    """Raise `CallbackError` unless the weights are whole, in the checkpoint, and inside the decoder's blocks."""
    if has_adapter(model):
        raise CallbackError(
            "Pruning.criterion=SparseGPT changes weights, and under an adapter these are in no checkpoint: prune "
            "without model.peft, then train the adapter; or take the criterion Wanda."
        )
    if is_sharded(model):
        raise CallbackError("Pruning.criterion=SparseGPT needs whole weights on each rank: use strategy ddp.")
    inside = {id(parameter) for parameter in decoder_layers(base_network(model)).parameters()}
    for weight in weights:
        if id(weight.parameter) not in inside:
            raise CallbackError(f"SparseGPT prunes the decoder's blocks; leave {weight.name} out of Pruning.include.")


@torch.no_grad()
def reconstruct(
    trainer: Trainer, network: Any, weights: Sequence[Weight], structure: Structure, criterion: SparseGPT
) -> dict[str, Tensor]:
    """Give all layers new weights, by the micro-batches that the criterion kept; returns what is kept of each, by name.

    Args:
        trainer: in a fit, whose module's `training_step` runs the network.
        network: with whole weights on this rank.
        weights: inside its blocks.
        structure: chooses which go.
        criterion: what the others become.

    Raises:
        CallbackError: a layer is not run by these batches.
    """
    structure.prepare(list(weights), criterion)
    module, blocks = trainer.lightning_module, list(decoder_layers(network))
    width = structure.width(criterion.block_size)
    kept = {}
    with generators_kept(module.device), evaluating(network), trainer.precision_plugin.forward_context():
        calls = [_calls(module, batch, blocks) for batch in criterion.batches]
        states = [call[0].states for call in calls]
        for number, block in enumerate(tqdm(blocks, "Pruning blocks", disable=not trainer.is_global_zero)):
            inside = {id(layer) for layer in block.modules()}
            members = [weight for weight in weights if id(weight.layer) in inside]
            runs = [call[number]._replace(states=state) for call, state in zip(calls, states, strict=True)]
            for stage in _stages(block, runs[0], members):
                products = _products(block, runs, stage[0].layer)
                for weight in stage:
                    choose = partial(structure.choose, weight, compares=criterion.compares)
                    value, kept[weight.name] = criterion.solve(weight.local.float(), products, choose, width)
                    if dist.is_initialized():
                        dist.broadcast(value, 0)
                    weight.local.copy_(value)
            states = [_run(block, call) for call in runs]
    criterion.batches = []
    return kept


def _calls(module: LightningModule, batch: Mapping[str, Any], blocks: Sequence[nn.Module]) -> list[_Call]:
    """How each block is called for a micro-batch; the states are those of the first block alone."""
    found: list[_Call] = []

    def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            found.append(_Call(args[0], args[1:], kwargs))
        else:
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            found.append(_Call(kwargs["hidden_states"], (), others))
        if len(found) > 1:
            found[-1] = found[-1]._replace(states=found[0].states[:0])
        if block is blocks[-1]:
            raise _EnoughError

    handles = [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    try:
        prepared = module.on_before_batch_transfer(batch, 0)
        module.training_step(module.transfer_batch_to_device(prepared, module.device, 0), 0)
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(blocks):
        raise CallbackError(f"SparseGPT: a training step runs {len(found)} of the network's {len(blocks)} blocks.")
    return found


def _run(block: nn.Module, call: _Call) -> Tensor:
    output = block(call.states, *call.args, **call.kwargs)
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _stages(block: nn.Module, call: _Call, weights: Sequence[Weight]) -> list[list[Weight]]:
    """The block's weights in the order in which they are used; those that read the same inputs are one stage."""
    stages: list[list[Weight]] = []
    read: list[Tensor] = []

    def see(weight: Weight, inputs: Tensor) -> None:
        if stages and read[-1] is inputs:
            stages[-1].append(weight)
        else:
            stages.append([weight])
            read.append(inputs)

    with _watching(weights, see):
        _run(block, call)
    seen = {weight.name for stage in stages for weight in stage}
    if missing := [weight.name for weight in weights if weight.name not in seen]:
        raise CallbackError(f"SparseGPT: no text passes through {missing[0]}; leave it out by Pruning.exclude.")
    return stages


def _products(block: nn.Module, runs: Sequence[_Call], layer: nn.Module) -> Tensor:
    """(in, in) float32, X^T X of all inputs of a layer, over all ranks."""
    total: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = args[0].flatten(0, -2).float()
        if total:
            total[0].addmm_(inputs.T, inputs)
        else:
            total.append(inputs.T @ inputs)
        raise _EnoughError

    handle = layer.register_forward_pre_hook(see)
    try:
        for call in runs:
            with suppress(_EnoughError):
                _run(block, call)
    finally:
        handle.remove()
    return reduce_sum(total[0])


@contextmanager
def _watching(weights: Sequence[Weight], see: Callable[[Weight, Tensor], None]) -> Iterator[None]:
    def hook(weight: Weight) -> Any:
        return weight.layer.register_forward_pre_hook(lambda _, args: see(weight, args[0]))

    handles = [hook(weight) for weight in weights]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
