"""Answers of a model folder, an adapter folder or a .gguf file, as transformers (and peft) load it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import answer, read_questions
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging


class Model:
    """Network and tokenizer; the network computes in float32, whatever type its weights have."""

    def __init__(self, tokenizer: Any, network: Any) -> None:
        self.tokenizer, self.network = tokenizer, network
        config = network.config
        self.num_positions = getattr(config, "max_position_embeddings", None) or 2**30
        ends = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
        self.ends = sorted(ends) if isinstance(ends, list) else [] if ends is None else [ends]

    def ids(self, text: str) -> list[int]:
        """Of a text."""
        return list(self.tokenizer(text).input_ids)

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """By the tokenizer's own template; a conversation that it refuses is its refusal."""
        if not self.tokenizer.chat_template:
            return None
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin_reply))
        except Exception as error:  # of any template
            return f"{type(error).__name__}: {error}"

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V)."""
        return self.network(torch.tensor([ids])).logits[0].float().numpy()


class Writer(Model):
    """A language model."""

    @torch.no_grad()
    def write(self, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        """Greedily, with the cache."""
        start = time.perf_counter()
        output = self.network(torch.tensor([ids]), use_cache=True)
        tokens = [int(output.logits[0, -1].argmax())]
        began = time.perf_counter()
        while len(tokens) < num_new:
            output = self.network(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            tokens.append(int(output.logits[0, -1].argmax()))
        return tokens, began - start, time.perf_counter() - began


class Rewards(Model):
    """A reward model."""

    def score(self, ids: list[int]) -> float:
        """Its one logit."""
        return float(self.logits(ids)[0])


def load(path: Path, base: str | None, is_reward_model: bool) -> tuple[Any, Any]:
    """Tokenizer and network; `base` is that of an adapter, where it lies now."""
    auto: Any = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": torch.float32}
    if path.suffix == ".gguf":
        from transformers import GgufConfig

        place: dict[str, Any] = {"gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
        options["quantization_config"] = GgufConfig(dequantize=True)
        return tokenizer, auto.from_pretrained(path.parent, **place, **options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        if base is None:
            raise
        tokenizer = AutoTokenizer.from_pretrained(base)
    if base is None:
        return tokenizer, auto.from_pretrained(path, **options)
    from peft import PeftModel

    if is_reward_model:
        options["num_labels"] = 1
    network = auto.from_pretrained(base, **options)
    # As peft does where it loads an adapter by itself: one that was trained with new tokens has rows for them.
    with_rows = (path / "tokenizer_config.json").is_file() and len(tokenizer) > network.config.vocab_size
    if with_rows:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer, PeftModel.from_pretrained(network, path)


def run(questions: dict[str, Any], folder: Path) -> None:
    """Answer about what lies at `path`."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    scores = questions["is_reward_model"]
    tokenizer, network = load(Path(questions["path"]), questions["base"], scores)
    answer((Rewards if scores else Writer)(tokenizer, network.eval()), questions, folder)


if __name__ == "__main__":
    run(*read_questions())
