"""A padding token that cannot be taken for the end of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def pad_apart(tokenizer: PreTrainedTokenizerFast) -> str:
    """A token for padding with which no conversation ends: the tokenizer's own, else another special one, else any.

    Where a model is read at "the last token that is not padding", as transformers reads classifiers, a padding token
    that also ends texts makes it read one token too early.

    Args:
        tokenizer: with its chat template.
    """
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    ends = {ids[-1], tokenizer.eos_token_id}
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    any_token = tokenizer.convert_ids_to_tokens(list(range(len(ends) + 1)))
    candidates = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *special, *any_token]
    return next(token for token in candidates if token and tokenizer.convert_tokens_to_ids(token) not in ends)
