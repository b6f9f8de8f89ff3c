"""Training that knows how its weights will be rounded."""

from functools import partial
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from callbacks.contract import HoldsNetwork, required
from callbacks.errors import CallbackError
from callbacks.monitoring.measurement import measure_quality, validation_batches
from callbacks.network import base_layer, base_network, has_adapter, is_zero_3
from callbacks.phase import is_rehearsal
from callbacks.quantization import layers, schemes
from callbacks.quantization.callback import Quantization
from callbacks.quantization.request import load_network
from callbacks.quantization.straight_through import RoundedLayers

MOST_DIFFERENCE = 0.1
"""Of the KL that quantizing costs, what the quantized folder may be away from the network that was trained."""


class QuantizationAwareTraining(Callback):
    """Trains with the weights that a scheme would leave (arXiv:1712.05877), so that the scheme then costs less.

    In each forward pass the linear layers round as the scheme does; gradients go past the rounding to the weights
    themselves. With a LoRA what is rounded is the weight with all that the LoRA adds, since that is what will be
    quantized. Checkpoints and model folders hold the weights unrounded: `Quantization`, in the same run or later,
    makes the quantized folder, and where it was made in this run it is compared with the network that was trained.

    Validation rounds from the beginning, so that losses before and after `start` can be compared, and `model/best` is
    the best one to quantize.

    Args:
        scheme: `int8`, `int8-dynamic`, `int4-rtn`, or the experiments `ternary` and `int1`; if not given, the scheme of
            `Quantization` in the same run.
        start: First step that trains so. A network that has to learn its task first is better off some way into it.
        group_size, symmetric, high_precision: As in `Quantization`, whose own they are if not given.

    Raises:
        CallbackError: A setting is wrong or not that of `Quantization`, the scheme has no rounding that can be trained
            with, or the network cannot be trained so (all before training); the folder that `Quantization` made is not
            the network that was trained.
    """

    def __init__(
        self,
        scheme: str | None = None,
        start: int = 0,
        group_size: int | None = None,
        symmetric: bool | None = None,
        high_precision: list[str] | None = None,
    ) -> None:
        if start < 0:
            raise CallbackError(f"QuantizationAwareTraining.start={start} is below 0.")
        if group_size is not None and group_size < 1:
            raise CallbackError(f"QuantizationAwareTraining.group_size={group_size} is below 1.")
        if scheme is not None:
            _check_scheme(scheme)
        self.scheme = scheme
        self.start = start
        self.group_size = group_size
        self.symmetric = symmetric
        self.high_precision = high_precision
        self._rounded: RoundedLayers | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._take_from(_quantization(trainer))
        if self.scheme is None:
            raise CallbackError(
                "QuantizationAwareTraining.scheme is not given, and the run has no Quantization to take it from: name "
                f"one of {', '.join(trainable())}."
            )
        schemes.check_installed([self.scheme])

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.scheme is not None
        network = required(pl_module, HoldsNetwork, self).model
        if getattr(trainer.strategy, "tensor_parallel_size", 1) > 1 or any(map(is_zero_3, network.parameters())):
            raise CallbackError(
                "QuantizationAwareTraining: each rank has to compute with whole layers, as under ddp and fsdp2 with "
                "tensor_parallel_size 1."
            )
        if getattr(network, "is_quantized", False):
            raise CallbackError(
                "QuantizationAwareTraining: the network is quantized already, and there is nothing left to round. "
                "Leave model.backbone.quantization out."
            )
        kept = self._kept(network)
        scheme = schemes.SCHEMES[self.scheme]
        size = (self.group_size or schemes.DEFAULT_GROUP_SIZE) if scheme.grouped else None
        layers.check_widths(network, kept, self.scheme, size, scheme.multiple)
        found = [module for name, module in _modules(network) if name not in kept]
        symmetric = bool(scheme.symmetric if self.symmetric is None else self.symmetric)
        assert scheme.rounded is not None
        weights = partial(scheme.rounded, group_size=size, symmetric=symmetric)
        self._rounded = RoundedLayers(weights, scheme.rounded_inputs)
        self._rounded.attach(found)
        when = f"from step {self.start} on" if self.start else "from the first step on"
        pl_module.print(f"Quantization-aware training: {len(found)} layers are rounded to {self.scheme} {when}.")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._switch(trainer.global_step >= self.start)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(True)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(trainer.global_step >= self.start)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All callbacks have ended their fit."""
        if stage != "fit" or self._rounded is None:
            return
        try:
            if trainer.is_global_zero and not is_rehearsal(trainer):
                self._compare(trainer, pl_module)
        finally:
            self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def _switch(self, on: bool) -> None:
        if self._rounded is not None:
            self._rounded.on = on

    def _detach(self) -> None:
        if self._rounded is not None:
            self._rounded.detach()
            self._rounded = None

    def _take_from(self, quantization: Quantization | None) -> None:
        """Fill in what is not given; what is given twice has to be the same."""
        if quantization is None:
            return
        if self.scheme is None:
            if len(quantization.schemes) > 1:
                raise CallbackError(
                    "QuantizationAwareTraining.scheme is not given, and Quantization has several: name one of "
                    f"{', '.join(quantization.schemes)}."
                )
            _check_scheme(quantization.schemes[0])
            self.scheme = quantization.schemes[0]
        if self.scheme not in quantization.schemes:
            raise CallbackError(
                f"QuantizationAwareTraining.scheme={self.scheme} is not among Quantization.schemes="
                f"{quantization.schemes}: what is trained for one rounding is no better with another."
            )
        if self.scheme in quantization.options:
            raise CallbackError(
                f"QuantizationAwareTraining: Quantization.options changes {self.scheme} in a way that is not trained "
                "for: leave it out."
            )
        for name in ("group_size", "symmetric", "high_precision"):
            given, its = getattr(self, name), getattr(quantization, name)
            if given is None:
                setattr(self, name, its)
            elif given != its:
                raise CallbackError(
                    f"QuantizationAwareTraining.{name}={given!r} differs from Quantization.{name}={its!r}: give it to "
                    "Quantization alone."
                )

    def _kept(self, network: Any) -> list[str]:
        """Names of the layers that are not rounded; raises `CallbackError` for what cannot be trained so."""
        kept = layers.kept_layers(network, self.high_precision)
        head = network.get_output_embeddings()
        for name, module in _modules(network):
            if base_layer(module) is head and name not in kept:
                raise CallbackError(
                    f"QuantizationAwareTraining: the loss reads the weights of {name} past its forward, so that it "
                    f"cannot be rounded in training: add {name!r} to Quantization.high_precision."
                )
            if module is not base_layer(module) and name not in kept:
                _check_adapter(name, module)
        if has_adapter(network):
            _check_adapters(network)
        return kept

    def _compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise `CallbackError` where the folder that was made is another network."""
        quantization = _quantization(trainer)
        if quantization is None or quantization.kept is None or quantization.kept.name != self.scheme:
            return
        network = cast(HoldsNetwork, pl_module).model
        self._switch(True)
        batches = validation_batches(trainer, 1)
        quantized = load_network(quantization.folder(trainer) / "quantized", trainer.strategy.root_device)
        found = measure_quality(quantized, batches, network).kl
        costs = quantization.kept.quality.kl
        assert found is not None and costs is not None
        if found > MOST_DIFFERENCE * costs + 1e-6:
            raise CallbackError(
                f"QuantizationAwareTraining: the quantized folder is not the network that was trained: their KL is "
                f"{found:.2g} nats a token, and quantizing an unprepared network costs {costs:.2g}. This is a fault of "
                f"llm-lightning or of the library behind {self.scheme}."
            )
        pl_module.print(f"The quantized folder is the network that was trained, to a KL of {found:.1g} nats a token.")


def trainable() -> list[str]:
    """Names of the schemes that can be trained for."""
    return [name for name, scheme in schemes.SCHEMES.items() if scheme.rounded is not None]


def _check_scheme(name: str) -> None:
    schemes.check_names([name])
    if name not in trainable():
        hint = " int4-rtn is the one for 4 bits." if name in ("int4", "nf4", "int4-torchao") else ""
        raise CallbackError(
            f"QuantizationAwareTraining.scheme={name} has no rounding that can be trained with; there are "
            f"{', '.join(trainable())}.{hint}"
        )


def _quantization(trainer: Trainer) -> Quantization | None:
    return next((each for each in getattr(trainer, "callbacks", ()) if isinstance(each, Quantization)), None)


def _modules(network: Any) -> list[tuple[str, nn.Module]]:
    """The linear layers by name, each with what an adapter put around it."""
    names = layers.linear_layers(network)
    return [(name, base_network(network).get_submodule(name)) for name in names]


def _check_adapters(network: Any) -> None:
    for config in network.peft_config.values():
        if getattr(config, "modules_to_save", None):
            raise CallbackError(
                "QuantizationAwareTraining: layers that an adapter trains as a whole (modules_to_save) are not known "
                "here: leave model.peft.modules_to_save out, or train without an adapter."
            )


def _check_adapter(name: str, module: Any) -> None:
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or any(each in module.lora_variant for each in module.active_adapters):
        raise CallbackError(
            f"QuantizationAwareTraining: the adapter of {name} is no plain LoRA ({type(module).__name__}), and what it "
            "adds to the weight cannot be rounded with it. Take peft.LoraConfig without use_dora."
        )
    if any(module.lora_bias[each] for each in module.active_adapters):
        raise CallbackError("QuantizationAwareTraining: a LoRA with lora_bias is not known here: leave it out.")
    if any(isinstance(module.lora_dropout[each], nn.Dropout) for each in module.active_adapters):
        raise CallbackError(
            "QuantizationAwareTraining: a LoRA is rounded together with the weight, where dropout on its inputs has no "
            "place: set model.peft.lora_dropout to 0."
        )
