"""What a network is for, which decides its head: logits of the next or of a hidden token, or the reward of a text."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm_lightning.errors import UserError
from llm_lightning.models.attention import attention_of
from llm_lightning.models.loading.sharding import gathered_zero3


@dataclass(frozen=True)
class Task:
    """A kind of network.

    Args:
        name: in messages.
        auto_class: transformers' class that finds an architecture's network of this kind.
        peft_type: peft's name for it, which stands in adapter folders.
        head: name of the head where it is not part of the pretrained weights, None for a language head.
        is_causal: whether a token sees only those before it.
    """

    name: str
    auto_class: Any
    peft_type: str
    head: str | None = None
    is_causal: bool = True

    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A copy of an architecture's config for this task.

        Raises:
            UserError: the weights are of a classifier.
        """
        config = copy.deepcopy(config)
        if self.head is None:
            return config
        if trained_for(config) is REWARD and config.num_labels != 1:
            raise UserError(
                f"model.backbone.path holds a classifier of {config.num_labels} labels; a {self.name} has one. Give "
                "the language model it was made from."
            )
        config.num_labels = 1
        config.problem_type = "regression"
        return config

    def from_config(self, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
        """A network without pretrained weights."""
        with self._as_user_error(config):
            return self.auto_class.from_config(self.configure(config), **options)

    def from_pretrained(self, source: Any, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
        """A network with weights from a folder or the hub; a head that is not among them starts anew."""
        if self.head is None:
            return self.auto_class.from_pretrained(source, config=config, **options)
        # That the language head goes and another one comes is no news. transformers draws numbers for it, which a
        # sharded network does not: what is drawn next, the weights of an adapter, is to be the same.
        with self._as_user_error(config), only_errors(), torch.random.fork_rng(devices=[]):
            model, info = self.auto_class.from_pretrained(source, config=config, output_loading_info=True, **options)
        missing = {key for key in info["missing_keys"] if not key.startswith(f"{self.head}.")}
        if missing:
            raise UserError(f"model.backbone.path={str(source)!r} lacks weights: {', '.join(sorted(missing)[:3])}.")
        if info["missing_keys"]:
            self.start_head(model)
        return model

    def start_head(self, model: nn.Module) -> None:
        """Let a new head begin at zero: all rewards are 0, and every pair is a coin toss. Nothing is drawn at random,
        so that an adapter's checkpoint finds the same network again.
        """
        if self.head is not None:
            parameters = list(model.get_submodule(self.head).parameters())
            with gathered_zero3(parameters, to_change=True):
                for parameter in parameters:
                    nn.init.zeros_(parameter)

    @contextmanager
    def _as_user_error(self, config: PreTrainedConfig) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise UserError(f"transformers has no {self.name} of the architecture {config.model_type}.") from error


LANGUAGE = Task("language model", AutoModelForCausalLM, "CAUSAL_LM")
MASKED = Task("masked language model", AutoModelForMaskedLM, "FEATURE_EXTRACTION", is_causal=False)
ENCODER_DECODER = Task("encoder-decoder", AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", is_causal=False)
REWARD = Task("reward model", AutoModelForSequenceClassification, "SEQ_CLS", head="score")
TASKS = {task.peft_type: task for task in (LANGUAGE, REWARD)}


def trained_for(config: PreTrainedConfig) -> Task:
    """What a network was trained for, by the architecture that the config of its folder names."""
    is_classifier = any("SequenceClassification" in name for name in config.architectures or ())
    return REWARD if is_classifier else LANGUAGE


def with_fresh_head(network: PreTrainedModel, task: Task) -> PreTrainedModel:
    """The network's layers, as they are, under the head of another task."""
    with torch.device("meta"):
        model = task.from_config(network.config, attn_implementation=attention_of(network))
    setattr(model, model.base_model_prefix, network.base_model)
    dtype, device = network.dtype, network.device
    assert task.head is not None
    head = model.get_submodule(task.head).to_empty(device=device).to(dtype)
    head.requires_grad_(True)
    task.start_head(model)
    model.name_or_path = network.name_or_path
    return model


@contextmanager
def only_errors() -> Iterator[None]:
    """Let transformers say nothing but errors."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
