"""Every setting that a class documents can be set from YAML and the command line."""

import inspect
import re

import pytest
from jsonargparse import ArgumentParser

import callbacks
import datamodules
import llm_lightning.loggers
import llm_lightning.modules
import llm_lightning.rewards
import llm_lightning.strategies
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining, SupervisedFinetuning
from tests.llm_lightning.conftest import tiny_config

OURS = ("llm_lightning", "callbacks", "datamodules")
PLACES = (
    callbacks, datamodules, llm_lightning.loggers, llm_lightning.modules, llm_lightning.rewards,
    llm_lightning.strategies,
)  # fmt: skip


def is_setting_up(value):
    if not inspect.isclass(value) or issubclass(value, BaseException) or getattr(value, "_is_protocol", False):
        return False
    return value.__module__.startswith(OURS) and not inspect.isabstract(value)


EXPORTED = [getattr(place, name) for place in PLACES for name in getattr(place, "__all__", dir(place))]
CLASSES = sorted(set(filter(is_setting_up, EXPORTED)), key=lambda cls: cls.__name__)


def documented(cls):
    """What the docstrings and the signatures of a class and its parents of ours name, as far as `kwargs` hand it on."""
    for each in cls.__mro__:
        if not each.__module__.startswith(OURS) or "__init__" not in vars(each):
            continue
        parameters = inspect.signature(each.__init__).parameters
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                yield name
        arguments = (inspect.getdoc(each) or "").partition("Args:\n")[2].partition("\n\n")[0]
        for names in re.findall(r"^    (\w+(?:, \w+)*):", arguments, re.MULTILINE):
            yield from (name for name in names.split(", ") if name not in ("args", "kwargs"))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_documented_setting_can_be_set(cls):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "it", fail_untyped=False)
    known = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("it.")}
    assert set(documented(cls)) <= known


def test_the_classes_are_all_here():
    names = {cls.__name__ for cls in CLASSES}
    assert names >= {"SupervisedFinetuning", "PPO", "SyntheticDataModule", "Quantization", "ZeROStrategy"}


@pytest.mark.parametrize("module", [CausalPretraining, SupervisedFinetuning])
def test_options_of_generate_are_looked_at_before_training(module):
    backbone = Backbone(config=tiny_config())
    for generation, words in [
        ({"temperature": 0.7}, "model.generation.temperature=0.7 has no effect.*do_sample: true"),
        ({"do_sample": True, "top_p": 3.0}, "model.generation.top_p=3.0"),
        ({"max_new_token": 8}, "no option 'max_new_token'"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_return_sequences": 4, "do_sample": True}, "num_return_sequences=4: a prompt gets one text"),
    ]:
        with pytest.raises(UserError, match=words):
            module(backbone, generation=generation).check()
    module(backbone, generation={"do_sample": True, "temperature": 0.7, "max_new_tokens": 200}).check()
