"""How a network writes: the generation settings of whatever is built, and of every folder that is saved."""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, generation

from llm_lightning.errors import UserError
from llm_lightning.models.tasks import only_errors

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
REPLY = "An answer"
TALK = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": REPLY}]


def generation_settings(config: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """A network's generation settings, so that it stops where its tokenizer ends a text and its template a reply.

    Args:
        config: the network's own; it stays as it is. Tokens that end a text for it still do.
        tokenizer: that goes with the network; None for none.
    """
    config = copy.deepcopy(config)
    if tokenizer is None:
        return config
    ends = {*end_tokens(config), tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    config.eos_token_id = sorted(ends) or None
    for name in ("bos_token_id", "pad_token_id"):
        own = getattr(tokenizer, name)
        if own is not None:
            setattr(config, name, own)
    return config


def end_tokens(config: GenerationConfig) -> list[int]:
    """The tokens that end a text."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def end_of_turn(tokenizer: Any) -> int | None:
    """The first special token that the chat template writes after a reply; None where there is none."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(TALK, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):  # of any template: it is no data of ours
        return None
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, special)), text.rpartition(REPLY)[2]) if special else None
    return tokenizer.convert_tokens_to_ids(found[0]) if found else None


def read_generation_config(source: str) -> GenerationConfig:
    """What a model folder or hub id says of generation, as transformers reads it with the weights.

    Raises:
        UserError: transformers refuses what it says.
    """
    try:
        with only_errors():
            return _read(source)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: its {FILE} cannot be used: {reason} Mend it there, or take it out.") from error


def _read(source: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:  # older folders say it in config.json
        return GenerationConfig.from_pretrained(source, config_file_name="config.json", _from_model_config=True)


def mended(config: GenerationConfig) -> tuple[GenerationConfig, dict[str, Any]]:
    """Settings that transformers agrees to use and to save, and those that were left out for it.

    Left out is what has no effect (a temperature where nothing is sampled) or no meaning (a top_p of 2): greedy stays
    greedy, sampling stays sampling.
    """
    config = copy.deepcopy(config)
    left_out: dict[str, Any] = {}
    if config.temperature == 0:  # how others say greedy
        config.do_sample = False
    while names := _wrong(config):
        left_out |= {name: getattr(config, name) for name in names}
        for name in names:
            setattr(config, name, None)
    return config, left_out


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UserError` for options of `generate` that it would not know, or that would change nothing."""
    for name in sorted(options):
        if name not in GenerationConfig().to_dict():
            raise UserError(f"model.generation: `generate` has no option {name!r}.")
    for name, only in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if options.get(name, only) != only:
            raise UserError(f"model.generation.{name}={options[name]}: a prompt gets one text; leave it out.")
    try:
        with only_errors():
            names = _wrong(GenerationConfig(**options))
    except (ValueError, TypeError) as error:
        raise UserError(f"model.generation: {' '.join(str(error).split())}") from error
    if names:
        hint = " Sampling needs do_sample: true." if options.get("do_sample") is not True else ""
        raise UserError(f"model.generation.{names[0]}={options[names[0]]} has no effect or no meaning here.{hint}")


def _wrong(config: GenerationConfig) -> list[str]:
    """Names of settings without effect or meaning."""
    for name in TOKENS:
        value = getattr(config, name)
        if not all(isinstance(each, int) for each in (value if isinstance(value, list) else [value or 0])):
            return [name]
    for name, check in _range_checks(config):
        try:
            check(getattr(config, name))
        except (ValueError, TypeError):
            return [name]
    try:
        config.validate(strict=True)
    except ValueError as error:
        if names := re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE):
            return names
        raise
    return []


def _range_checks(config: GenerationConfig) -> Iterator[tuple[str, Any]]:
    """What `generate` does with a setting at the first token, where it refuses values that `validate` lets pass."""
    warpers = {
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
        "typical_p": generation.TypicalLogitsWarper,
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
    }
    for name, warper in warpers.items():
        value = getattr(config, name)
        if value is not None and not (name == "top_k" and value == 0):  # 0 is no limit
            yield name, warper
