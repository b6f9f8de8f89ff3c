"""Bytes a token, exact on text of many scripts."""

from tokenizers import Tokenizer, models, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from transformers import PreTrainedTokenizerFast

from llm_lightning.models.tokens import token_bytes

TEXT = "El ingenioso hidalgo don Quijote de la Mancha 🙂 naïve, übermäßig; 日本語.\n\ttabs and  spaces\n"


def trained(pre_tokenizer, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    special = ["<|endoftext|>", *([f"<0x{i:02X}>" for i in range(256)] if options else [])]
    alphabet = ByteLevel.alphabet() if not options else []
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def test_byte_level():
    tokenizer = trained(ByteLevel(add_prefix_space=False))
    tokenizer.decoder = ByteLevelDecoder()
    counts = token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>"))
    ids = tokenizer.encode(TEXT).ids
    assert counts[ids].sum() == len(TEXT.encode())
    assert counts[tokenizer.token_to_id("<|endoftext|>")] == 0


def test_metaspace():
    tokenizer = trained(Metaspace(prepend_scheme="never"), unk_token=None, byte_fallback=True)
    counts = token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>"))
    text = TEXT.replace("\n", "").replace("\t", "")
    assert counts[tokenizer.encode(text).ids].sum() == len(text.encode())
