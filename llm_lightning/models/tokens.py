"""How many bytes of text a token stands for."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

BYTE_FALLBACK_LENGTH = len("<0x00>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """UTF-8 bytes of each token, (len(tokenizer),) float32; special tokens stand for none.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen, ours) write each byte as one character, so the count is exact even
    for a token that is a part of a character. SentencePiece vocabularies write a space as U+2581 and a lone byte as
    <0xNN>.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    alphabet = set(ByteLevel.alphabet())
    plain = [token for token, index in vocabulary.items() if index not in special]
    is_byte_level = all(set(token) <= alphabet for token in plain[:1000])
    counts = torch.zeros(max(len(tokenizer), max(vocabulary.values()) + 1))
    for token, index in vocabulary.items():
        if index in special:
            continue
        if is_byte_level and set(token) <= alphabet:
            counts[index] = len(token)
        elif len(token) == BYTE_FALLBACK_LENGTH and token.startswith("<0x"):
            counts[index] = 1
        else:
            counts[index] = len(token.replace("▁", " ").encode("utf-8", errors="surrogatepass"))
    return counts
