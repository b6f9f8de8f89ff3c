"""An adapter on the network: any method of peft, or our bottlenecks; what of it trains, is saved, and is checked."""

import copy
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models.adapters import adalora, empty, residual
from llm_lightning.models.adapters.bottleneck import BottleneckConfig, add_bottlenecks, save_bottleneck
from llm_lightning.models.adapters.virtual_tokens import IN_ATTENTION, IN_EMBEDDINGS, prompt_config
from llm_lightning.models.attention import ATTENTION, attention_of
from llm_lightning.models.loading.gguf import kept_beside
from llm_lightning.models.loading.new_tokens import with_rows
from llm_lightning.models.loading.sharding import gathered, is_sharded, is_zero3, reshard
from llm_lightning.models.tasks import LANGUAGE, Task

SAMPLES = 64
"""Numbers of each weight that go into the fingerprint of a base: two checkpoints that agree in all of them are one."""


class Adapter:
    """What a run has to know of the adapter on its network.

    Args:
        network: whole, before anything shards it; it is changed in place and frozen but for the adapter.
        config: of the method; it is copied.
        task: what the network is for.

    Attributes:
        model: what takes the network's place: a `PeftModel`, or the network itself where bottlenecks are on it.
        names: entries of the model's state dict that belong to the adapter.
        base: fingerprint of the network's weights before the adapter.
        base_names: for each weight of the network, now that the adapter is on it, its name before.

    Raises:
        UserError: the method does not fit the network or its settings.
    """

    def __init__(self, network: PreTrainedModel, config: PeftConfig, task: Task = LANGUAGE) -> None:
        if is_zero3(next(network.parameters())):
            raise UserError(
                "model.peft cannot start under ZeRO 3, which cuts its weights up before they have their first numbers: "
                "take --config configs/trainer/fsdp.yaml or deepspeed_zero2.yaml."
            )
        self._network = network
        is_empty = next(network.parameters()).is_meta
        if is_empty:
            empty.make_hollow(network)
        # Of a weight that is shared the first name counts, as in files.
        base = {id(tensor): name for name, tensor in reversed([*_tensors(network)])}
        self.base = "" if is_empty else fingerprint(network)
        self.model: Any = put_on(network, with_rows(copy.deepcopy(config), network), task)
        self.names = {name for name, tensor in _tensors(self.model) if tensor.requires_grad or id(tensor) not in base}
        state = network.state_dict(keep_vars=True)
        self.base_names = {name: base[id(tensor)] for name, tensor in state.items() if id(tensor) in base}
        self.initial = residual.initial_weights(self.model)
        if is_empty:
            empty.check_sharded(self.model, network, config)
            empty.make_empty(network)
        self._beneath = "" if is_empty else fingerprint(self.model, frozen=True)

    def after_load(self) -> None:
        """Look at the weights of a network that was empty before."""
        empty.initialize_copies(self.model)
        names = self.base_names
        self.base = _fingerprint({names[n]: p for n, p in self._network.named_parameters() if n in names})
        self._beneath = fingerprint(self.model, frozen=True)

    def select(self, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The entries that a checkpoint keeps: all outside the network, and the adapter's.

        Args:
            state_dict: of a module that holds the network.
            prefix: of the network in it, with its dot.
        """
        names = {prefix + name for name in self.names}
        return {name: value for name, value in state_dict.items() if name in names or not name.startswith(prefix)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        state: dict[str, Any] = {"base": self.base, "initial": self.initial}
        if adalora.is_adalora(self.model):
            state["allocation"] = adalora.allocation_state(self.model)
        return state

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint.

        Args:
            state: from `state_dict`; None where the checkpoint was made without an adapter.

        Raises:
            UserError: its adapter is for other weights.
        """
        if state is None:
            raise UserError(
                "The checkpoint is of a run without model.peft: leave it out, or start over by --resume false."
            )
        if state["base"] != self.base:
            raise UserError(
                "The checkpoint's adapter was trained on other weights than these: give the model.backbone it was made "
                "with (the path, dtype and quantization in the run's config.yaml), or start over by --resume false."
            )
        residual.use_initial_weights(self.model, self.initial, state["initial"])
        self.initial = dict(state["initial"])
        self._beneath = fingerprint(self.model, frozen=True)
        if adalora.is_adalora(self.model):
            adalora.load_allocation_state(self.model, state["allocation"])

    def before_fit(self, num_steps: float) -> None:
        """Tell methods with a schedule how many optimizer steps the run has."""
        if adalora.is_adalora(self.model):
            adalora.set_total_steps(self.model, num_steps)

    def after_step(self, step: int) -> None:
        """After optimizer step number `step`, counted from 1, while its gradients are there."""
        if adalora.is_adalora(self.model):
            adalora.allocate_ranks(self.model, step)

    def in_float32(self) -> list[nn.Parameter]:
        """Trained parameters that are in float32, whatever the network around them is in."""
        return [p for p in self.model.parameters() if p.requires_grad and p.dtype == torch.float32]

    def is_on_its_base(self, model: Any) -> bool:
        """Whether `model` is still this adapter on the weights that it was put on."""
        return model is self.model and fingerprint(model, frozen=True) == self._beneath

    def save(self, folder: Path, *, is_global_zero: bool = True) -> None:
        """Write the adapter alone: a folder for `PeftModel.from_pretrained`, or for `load_bottleneck`.

        Args:
            folder: made where it is missing.
            is_global_zero: only this rank writes; all have to call it where the network is sharded.
        """
        weights: dict[str, Tensor] = {}
        if is_sharded(self._network):
            weights = {
                name: gathered(t) for name, t in self.model.state_dict(keep_vars=True).items() if name in self.names
            }
        if not is_global_zero:
            return
        self._name_base(folder)
        if not hasattr(self.model, "peft_type"):
            save_bottleneck(self.model, folder, weights)
            return
        with _quiet(), residual.as_lora(self.model, self.initial) as options, _without_dropout(self.model):
            options |= {"state_dict": weights} if weights else {}
            # Weights of the base are in no adapter; left to itself, peft asks the hub whether embeddings were resized.
            self.model.save_pretrained(str(folder), save_embedding_layers=False, **options)

    def _name_base(self, folder: Path) -> None:
        """Write down a base that the adapter is found with again."""
        configs = getattr(self.model, "peft_config", None) or {"": getattr(self.model, "bottleneck_config", None)}
        for config in filter(None, configs.values()):
            if config.base_model_name_or_path:
                config.base_model_name_or_path = kept_beside(config.base_model_name_or_path, folder)


def put_on(network: PreTrainedModel, config: PeftConfig, task: Task = LANGUAGE) -> Any:
    """The network with an adapter of its own on it, all else frozen; adapter weights are float32 on any base.

    LLaMA-Adapter is the exception: peft mixes its weights with the network's own, so they have the network's dtype.

    Raises:
        UserError: the method does not fit the network or its settings.
    """
    if isinstance(config, BottleneckConfig):
        if task.head is not None:
            raise UserError(f"model.peft=BottleneckConfig has no place for the head of a {task.name}: use LoRA.")
        add_bottlenecks(network, config)
        return network
    # A head that starts anew is trained and saved with the adapter: peft sees to that by the task.
    config.task_type = TaskType(task.peft_type)
    name = type(config).__name__
    _check_method(network, config, name)
    residual.check(network, config)
    # A shared weight with an adapter on one side is all right: merging unties it.
    with _quiet(), _as_user_error(network, name):
        model = get_peft_model(network, config)
    if prompt_config(model) is not None:
        model.prompt_encoder.float()
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            module.trainable_tokens_delta.float()
    return model


def check_targets(network: PreTrainedModel, config: PeftConfig) -> None:
    """Raise `UserError` where the config names modules that the network has not; weights are not looked at."""
    targets = getattr(config, "target_modules", None)
    names = [name for name, _ in network.named_modules()]
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, name) for name in names):
            raise UserError(
                f"model.peft.target_modules={targets!r} fits no module. As a text it is a regular expression for whole "
                f"names; give a list of the ends of names instead. {_module_names(network)}"
            )
        return
    for target in sorted(targets or []):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"model.peft.target_modules: {target!r} fits no module. {_module_names(network)}")


def fingerprint(network: nn.Module, frozen: bool = False) -> str:
    """A short name for the values of a network's weights (or only the frozen ones): a sample of each is looked at."""
    reshard(network)
    return _fingerprint({n: p for n, p in network.named_parameters() if not (frozen and p.requires_grad)})


def _fingerprint(parameters: Mapping[str, nn.Parameter]) -> str:
    if any(parameter.is_meta or isinstance(parameter, FakeTensor) for parameter in parameters.values()):
        return ""  # there are no numbers
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in parameters.items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
    parts = (part.flatten() for parameter in parameters.values() for part in _parts(gathered(parameter)))
    samples = [part[:: max(1, len(part) // SAMPLES)][:SAMPLES].to(torch.float32, copy=True) for part in parts]
    digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_method(network: PreTrainedModel, config: Any, name: str) -> None:
    if config.is_prompt_learning:
        if config.peft_type not in IN_EMBEDDINGS + IN_ATTENTION:
            raise UserError(
                f"model.peft={name}: of the methods with virtual tokens there are prompt, P- and prefix tuning."
            )
        if not config.num_virtual_tokens:
            raise UserError(f"model.peft={name} needs num_virtual_tokens, for example 20.")
    if config.peft_type in IN_ATTENTION:
        if attention_of(network) != ATTENTION:
            raise UserError(f"model.peft={name} needs model.backbone.attention={ATTENTION}, the default.")
        if any(m._compiled_call_impl is not None for m in network.modules()):
            raise UserError(f"model.peft={name} does not go with model.backbone.compile: leave that out.")
    if config.is_adaption_prompt and not (config.adapter_len and config.adapter_layers):
        raise UserError(f"model.peft={name} needs adapter_len and adapter_layers, for example 10 and 8.")


@contextmanager
def _as_user_error(network: PreTrainedModel, name: str) -> Iterator[None]:
    """What peft finds wrong with a config is a user's mistake."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.peft={name}: {reason} {_module_names(network)}") from error


def _module_names(network: nn.Module) -> str:
    layers = (name for name, module in network.named_modules() if not list(module.children()) and "." in name)
    names = sorted({name.rsplit(".", 1)[1] for name in layers if name.rsplit(".", 1)[1].isidentifier()})
    return f"Modules for model.peft.target_modules: {', '.join(names)}."


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors in a tensor: torchao's quantized ones hold several."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the terminal what peft says to developers, and what it fears of tied weights: merging unties them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing. is deprecated.*")
        # AdaLoRA's least important layers end at rank 0.
        warnings.filterwarnings("ignore", message=r".*LoRA tensor\(s\) have invalid shape.*")
        warnings.filterwarnings("ignore", message=r".*tie_word_embeddings.*")
        yield


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """A prompt encoder is run once more to be saved; its dropout must not be in what is saved."""
    encoder = getattr(model, "prompt_encoder", None) if prompt_config(model) is not None else None
    if encoder is None:
        yield
        return
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)
