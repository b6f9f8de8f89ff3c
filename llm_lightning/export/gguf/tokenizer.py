"""Byte-level BPE tokenizers as llama.cpp knows them: the tokens, the merges, and the name of how text is split."""

import json
from dataclasses import dataclass
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.models.generation import end_of_turn

ADVICE = "Take --to merged, and llama.cpp's own convert_hf_to_gguf.py on its folder."


DIGITS = "smollm"
"""llama.cpp's name for GPT-2's way to split with each digit by itself, as SmolLM and StarCoder have it."""


@dataclass(frozen=True)
class Description:
    """What is written of a tokenizer.

    Attributes:
        split: llama.cpp's name of how text is split before the merges.
        tokens: by id, as many as the network has embeddings.
        types: of each, by gguf's numbers.
        merges: pairs with a space between, the most urgent one first.
        begins: whether a text begins with the BOS.
        ends: whether it ends with the EOS.
        normalizes: whether texts are brought into NFC first, which llama.cpp does not do.
    """

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    begins: bool
    ends: bool
    normalizes: bool


def describe(tokenizer: Any, vocab_size: int) -> Description:
    """What there is to write of a tokenizer for a network of `vocab_size` embeddings.

    Raises:
        UserError: it is of a kind that is not known here, or the network has fewer embeddings than it has tokens.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model["type"] != "BPE" or model.get("byte_fallback") or odd:
        kind = f"{model['type']}{' with byte_fallback (SentencePiece)' if model.get('byte_fallback') else ''}"
        raise UserError(
            f"--to gguf: the tokenizer is {kind}{', with ' + odd[0] if odd else ''}; only byte-level BPE is written "
            f"here. {ADVICE}"
        )
    split = _split(state["pre_tokenizer"])
    if model.get("ignore_merges") and split != "llama-bpe":
        raise UserError(f"--to gguf: the tokenizer has ignore_merges, which {split!r} cannot say. {ADVICE}")
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise UserError(
            f"--to gguf: the tokenizer normalizes text by {normalizer}, which the file cannot say. {ADVICE}"
        )
    tokens, types = _tokens(tokenizer, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    framed = list(tokenizer("a").input_ids)
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    before, after = _around(framed, bare)
    begins, ends = before == [tokenizer.bos_token_id], after == [tokenizer.eos_token_id]
    if (before and not begins) or (after and not ends):
        raise UserError(f"--to gguf: the tokenizer puts {before} before and {after} after a text. {ADVICE}")
    return Description(split, tokens, types, merges, begins, ends, normalizer == "NFC")


def add_tokenizer(writer: Any, tokenizer: Any, described: Description) -> None:
    """Tokens, special tokens and chat template, into a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(described.split)
    writer.add_token_list(described.tokens)
    writer.add_token_types(described.types)
    writer.add_token_merges(described.merges)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    turn = end_of_turn(tokenizer)
    if turn is not None and turn != tokenizer.eos_token_id:
        writer.add_eot_token_id(turn)
    writer.add_add_bos_token(described.begins)
    writer.add_add_eos_token(described.ends)
    if tokenizer.chat_template:
        writer.add_chat_template(_template(tokenizer.chat_template))


def _template(template: Any) -> str:
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(f"--to gguf: of the chat templates {', '.join(template)} none is called default.")
        return str(template["default"])
    return str(template)


def _split(pre_tokenizer: Any) -> str:
    """llama.cpp's name for a tokenizer's way to split; the regular expressions are those that transformers reads."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {"type": None}]
    *before, last = parts
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        if not before and last["use_regex"]:
            return "gpt-2"
        if before == [{"type": "Digits", "individual_digits": True}] and last["use_regex"]:
            return DIGITS
        if len(before) == 1 and before[0]["type"] == "Split" and not last["use_regex"]:
            pattern, keeps = before[0]["pattern"].get("Regex"), before[0]["behavior"] == "Isolated"
            for name in ("llama-bpe", "qwen2", "qwen35", "gpt-4o", "tekken"):
                if keeps and not before[0]["invert"] and GGUF_PRE_TOKENIZER_SPLITS.get(name) == pattern:
                    return name
    described = json.dumps(pre_tokenizer, ensure_ascii=False)
    raise UserError(
        f"--to gguf: no name is known here for how the tokenizer splits text ({described[:200]}), and a file with a "
        f"wrong one answers fluent nonsense. {ADVICE}"
    )


def _tokens(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if vocabulary and max(vocabulary) >= vocab_size:
        raise UserError(f"--to gguf: the tokenizer has token {max(vocabulary)}, the network {vocab_size} embeddings.")
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(vocab_size):
        if number not in vocabulary:  # rows that fill up the embeddings
            tokens.append(f"[PAD{number}]")
            types.append(TokenType.UNUSED)
        else:
            tokens.append(vocabulary[number])
            is_added, special = number in added, number in added and added[number].special
            types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED if is_added else TokenType.NORMAL)
    return tokens, [int(kind) for kind in types]


def _around(framed: list[int], bare: list[int]) -> tuple[list[int], list[int]]:
    start = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
    return framed[:start], framed[start + len(bare) :]
