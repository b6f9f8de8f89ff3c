"""Small tokenizers of the two great families, trained on a text or two."""

from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.encoding.tokenizer import train

CODELLAMA = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


def byte_level(texts: list[str], markers: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """As GPT-2's and those after it."""
    tokenizer = train(iter(texts), 400)
    tokenizer.add_tokens(list(markers), special_tokens=True)
    return tokenizer


def sentence_piece(texts: list[str], markers: tuple[str, ...] = tuple(CODELLAMA)) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space before every text, and bytes for what it has never seen."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    words = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [
        next((word[:cut], word[cut:]) for cut in range(1, len(word)) if {word[:cut], word[cut:]} <= vocabulary.keys())
        for word in words
        if len(word) > 1
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens(list(markers), special_tokens=True)
    return made


def lower_case(texts: list[str]) -> PreTrainedTokenizerFast:
    """As BERT's: what was read cannot be told from the tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[SEP]",
    )  # fmt: skip


def windows(ids: list[int], length: int) -> list[list[int]]:
    """Cut as documents longer than a row are."""
    return [ids[start:stop] for start, stop in pairwise([*range(0, len(ids), length), len(ids)])]
