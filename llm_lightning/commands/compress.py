"""`llm-lightning compress`: which pruning and which quantization together hold a budget best?"""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from callbacks import CallbackError, Pruning, Quantization
from llm_lightning.commands.given_settings import read_settings
from llm_lightning.compression import CompressionSearch
from llm_lightning.errors import UserError
from llm_lightning.messages import readable
from llm_lightning.process.command import run_command
from llm_lightning.settings.shipped import with_found_configs

USAGE = """\
usage: llm-lightning compress --config FILE [--config FILE ...] [--KEY VALUE ...]

Trains a network under each of several prunings, quantizes each by several schemes, measures all on the validation data,
and keeps the one that holds the budget best as model/compressed. compression.png shows size against perplexity and what
no other one beats. The settings are those of `fit`, and under `compress` in the same YAML:

  prunings      by name the settings of Pruning; one is null, the network that is not pruned
  quantization  those of Quantization, whose limits are the budget

See configs/sweeps/compression.yaml. Stopped, even by kill -9, the same command goes on.
"""
OWN = "compress"


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: those of `fit`, and those under `compress`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _compress, debug=debug, mistakes=(UserError, CallbackError, OSError))


def _compress(args: list[str]) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compress: start it once, without a launcher; each fit starts the ranks of trainer.devices.")
    own, own_flags, fit_args = _parted(with_found_configs(args))
    if not own and not own_flags:
        raise UserError(
            "compress: no --config has the settings `compress`; configs/sweeps/compression.yaml shows them."
        )
    settings, quantization = _read(own, own_flags)
    fit = read_settings(["fit", *fit_args])
    named = [str(each.get("class_path", "")).rsplit(".", 1)[-1] for each in fit.trainer.callbacks or ()]
    for name in ("Pruning", "Quantization"):
        if name in named:
            raise UserError(f"trainer.callbacks has {name}, which compress adds by itself: leave it out there.")
    search = CompressionSearch(
        fit_args=fit_args,
        root=Path(fit.trainer.default_root_dir or "runs/compression"),
        prunings=settings["prunings"],
        quantization=settings["quantization"],
        budget=quantization.budget,
        has_adapter=fit.model.init_args.get("peft") is not None,
    )
    search.check()
    return search.run()


def _parted(args: list[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """What files say under `compress`, the flags under it, and all else, as arguments of `fit`."""
    own: dict[str, Any] = {}
    flags, rest = [], []
    words = iter(args)
    for word in words:
        name, has_value, value = word.partition("=")
        if not name.startswith("--") and name != "-c":
            rest.append(word)
        elif name.startswith(f"--{OWN}"):
            flags.append(_own_flag(name, value if has_value else next(words, "")))
        elif name in ("--config", "-c"):
            given = value if has_value else next(words, "")
            content = _content(given)
            if OWN in content:
                own |= content.pop(OWN) or {}
                given = json.dumps(content)
            rest.append(f"--config={given}")
        else:
            rest.append(word)
    return own, flags, rest


def _own_flag(name: str, value: str) -> str:
    """A flag of a setting that there is, with a value of its kind, which no message of a parser then has to quote."""
    match = re.fullmatch(rf"--{OWN}\.(prunings|quantization)(\.[\w.-]+\+?)?", name)
    if match is None:
        raise UserError(f"compress: of its own it has the settings {OWN}.prunings and {OWN}.quantization alone.")
    if match[2] is None:
        content = _content(value, name)
        settings = [content] if match[1] == "quantization" else [each for each in content.values() if each is not None]
        if not all(isinstance(each, dict) and "class_path" in each for each in settings):
            raise UserError(f"{name}: settings of a callback are {{class_path: NAME, init_args: {{...}}}}.")
    return f"{name}={value}"


def _content(given: str, flag: str = "--config") -> dict[str, Any]:
    """What a file, or YAML itself, says."""
    try:
        content = yaml.safe_load(given if set(given) & set("{\n") else Path(given).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{flag}: this is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{flag}: there are no settings in what is given.")
    return content


def _read(own: dict[str, Any], flags: list[str]) -> tuple[dict[str, Any], Quantization]:
    """The settings of `compress`, checked as the callbacks check them, and the one that quantizes."""
    parser = ArgumentParser("llm-lightning compress", exit_on_error=False, allow_abbrev=False)
    parser.add_argument(f"--{OWN}.prunings", type=dict[str, Pruning | None], required=True)
    parser.add_argument(f"--{OWN}.quantization", type=Quantization, required=True)
    given = [f"--{OWN}.{name}={json.dumps(value)}" for name, value in own.items()]
    try:
        config = parser.parse_args([*given, *flags])
        built = parser.instantiate_classes(config)
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(readable(error)) from error
    plain = yaml.safe_load(parser.dump(config))
    return plain[OWN], built[OWN].quantization
