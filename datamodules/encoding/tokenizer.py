"""The tokenizer: loaded where one is named, else a byte-level BPE trained from the corpus."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.cache import key_of, made_folder
from datamodules.errors import DataError
from datamodules.filters.chain import Chain
from datamodules.filters.filter import spec_of
from datamodules.records.text_source import texts_of
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.units import Unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
# Chat tokens are there from the beginning, so that later tuning on conversations adds no rows to the embeddings.
CHAT = ["<|im_start|>", "<|im_end|>"]
SPECIAL_TOKENS = [END_OF_TEXT, PAD, *CHAT]
SMALLEST_VOCAB = 256 + len(SPECIAL_TOKENS)  # every byte must have a token
SAMPLE_CHARACTERS = 64 << 20  # merges no longer change with more text; keeps training under a minute or so
MOST_UNITS_SAMPLED = 1024


@dataclass(frozen=True)
class Framing:
    """The ids that a tokenizer puts before and after each document.

    `prefix` is what its own convention says (a BOS, or nothing). `suffix` always ends with its EOS, whether its own
    convention says so or not, since that is how a model learns to stop.
    """

    prefix: list[int]
    suffix: list[int]


def framing(tokenizer: PreTrainedTokenizerFast, needs_end: bool = True) -> Framing:
    """How documents are framed with this tokenizer.

    Args:
        tokenizer: with its own convention.
        needs_end: whether the model has to learn to stop; an encoder does not.

    Raises:
        DataError: the tokenizer has no EOS token, which is needed.
    """
    if tokenizer.eos_token_id is None and needs_end:
        raise DataError("tokenizer: it has no EOS token; set one (tokenizer.eos_token = ...) and save it again")
    bare = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a", add_special_tokens=True).input_ids
    begin = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
    prefix, suffix = framed[:begin], framed[begin + len(bare) :]
    ends = suffix[-1:] == [tokenizer.eos_token_id] or tokenizer.eos_token_id is None
    return Framing(prefix, suffix if ends or (suffix and not needs_end) else [*suffix, tokenizer.eos_token_id])


def load_tokenizer(name: str, new_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer from a hub id, a folder, or a `.gguf` file.

    Args:
        name: where it is.
        new_tokens: control tokens that are added, those that it has not.

    Raises:
        DataError: nothing is there, or it is a tokenizer written in Python alone.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise DataError(f"tokenizer: {name!r} does not exist")
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    else:
        try:
            # Unless it is told, transformers asks on standard input whether to run what comes with a tokenizer.
            tokenizer = AutoTokenizer.from_pretrained(str(path) if path.exists() else name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise DataError(
                    f"tokenizer: {name!r} is made by code that comes with it (auto_map in its configuration), which is"
                    " never run; save it with a tokenizer.json and without auto_map, or name another one"
                ) from error
            raise DataError(f"tokenizer: {name!r} is no folder with a tokenizer, nor found on the hub") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer: {name!r} has no fast version (tokenizer.json), which training at scale needs")
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)
    return tokenizer


def bare(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the Rust tokenizer, so that switches set on it do not show in the user's."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def backend_state(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the tokenizer does to text; padding and truncation, which calls switch on, do not count."""
    state = json.loads(tokenizer.to_str())
    state["padding"] = state["truncation"] = None
    return state


def trained_tokenizer(
    units: list[Unit], vocab_size: int, root: Path, on_bad: OnBadRecord, chain: Chain | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, trained once for these units and kept in the cache.

    Args:
        chain: of filters; what those that look at one document take out is not learned from.

    Raises:
        DataError: a bad record, with `on_bad="stop"`.
    """
    from transformers import PreTrainedTokenizerFast

    parts = [[unit.digest, unit.start, unit.stop, unit.column] for unit in units]
    filters = [] if chain is None else [[spec_of(each) for each in chain.single]]
    folder = root / "tokenizers" / key_of(parts, vocab_size, SPECIAL_TOKENS, SAMPLE_CHARACTERS, *filters)
    made_folder(folder, "a tokenizer", lambda new: train(sample(units, on_bad, chain), vocab_size).save_pretrained(new))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def sample(units: list[Unit], on_bad: OnBadRecord, chain: Chain | None = None) -> Iterator[str]:
    """At most `SAMPLE_CHARACTERS` of text, spread evenly over the units: the same for the same corpus."""
    step = max(1, len(units) // MOST_UNITS_SAMPLED)
    chosen = units[::step]
    left_over = 0
    for unit in chosen:
        budget = SAMPLE_CHARACTERS // len(chosen) + left_over
        texts = texts_of(unit, BadRecords(unit, on_bad))
        for text in texts if chain is None else chain.passing(texts, chain.funnel()):
            yield text[:budget]
            budget -= len(text)
            if budget <= 0:
                break
        left_over = max(0, budget)


def train(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with GPT-2's splitting, which every inference engine knows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    first = next(texts, "")
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        extra_special_tokens=CHAT,
        clean_up_tokenization_spaces=False,
    )
