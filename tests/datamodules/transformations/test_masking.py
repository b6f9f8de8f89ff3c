"""Hidden tokens: in their shares, others each epoch, and the same wherever they are drawn."""

import numpy as np
import pytest
import torch

from datamodules import DataError, TextDataModule
from datamodules.serving.collate import IGNORE, Piece
from datamodules.transformations.draws import generator
from datamodules.transformations.masking import Masking, Masks
from tests.datamodules.transformations.tokenizers import byte_level, lower_case, sentence_piece


@pytest.fixture
def module(write_jsonl, cache, texts):
    """Makes a DataModule over the texts, with small numbers."""
    path = write_jsonl(texts[:100])

    def make(**settings) -> TextDataModule:
        defaults = {"path": path, "vocab_size": 400, "seq_len": 128, "batch_size": 4, "cache_dir": str(cache)}
        data = TextDataModule(**{**defaults, "masking": Masking(), **settings})
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def stream(data: TextDataModule, count: int) -> list[dict[str, torch.Tensor]]:
    loader, batches = data.train_dataloader(), []
    while len(batches) < count:
        batches += list(loader)
    return batches[:count]


def whole(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["input_ids"].where(batch["labels"] == IGNORE, batch["labels"])


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    assert len(one) == len(other) > 0
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_an_epoch_holds_the_rows_of_the_text_with_tokens_hidden_in_their_shares(module):
    data, plain = module(), module(masking=None)
    num_batches = len(data.train_dataloader())
    batches = stream(data, num_batches)
    rows = {tuple(row) for batch in batches for row in whole(batch).tolist()}
    assert rows == {tuple(row) for batch in stream(plain, num_batches) for row in batch["input_ids"].tolist()}
    mask = data.tokenizer.mask_token_id
    hidden = torch.cat([batch["labels"][batch["labels"] != IGNORE] for batch in batches])
    seen = torch.cat([batch["input_ids"][batch["labels"] != IGNORE] for batch in batches])
    num_tokens = plain.statistics["train"]["num_tokens"]
    n = len(hidden)
    assert n > 2500 and abs(n / num_tokens - 0.15) < 0.01
    shares = [(seen == mask).sum() / n, (seen == hidden).sum() / n]
    assert abs(shares[0] - 0.8) < 0.03 and abs(shares[1] - 0.1) < 0.02
    control = torch.tensor(sorted(i for i, t in data.tokenizer.added_tokens_decoder.items() if t.special))
    assert not torch.isin(hidden, control).any() and not torch.isin(seen[seen != mask], control).any()


def test_masks_are_others_each_epoch_and_in_validation_always_the_same(module):
    data = module(val_share=0.2)
    epoch = len(data.train_dataloader())
    batches = stream(data, 2 * epoch)
    first, second = (
        {
            tuple(text): labels
            for b in part
            for text, labels in zip(whole(b).tolist(), b["labels"].tolist(), strict=True)
        }
        for part in (batches[:epoch], batches[epoch:])
    )
    assert first.keys() == second.keys()
    assert sum(first[text] != second[text] for text in first) >= len(first) - 1  # one row may be blank
    loader = data.val_dataloader()
    assert same(list(loader), list(loader)) and (next(iter(loader))["labels"] != IGNORE).any()


def test_masks_are_the_same_for_any_number_of_workers_and_after_resuming(module):
    straight = stream(module(), 80)
    data = module()
    loader = data.train_dataloader()
    assert 20 < len(loader) < 80
    assert same(stream(module(num_workers=2), 80), straight)
    for position in (3, len(loader) + 7):
        rows = loader.order.epoch_len
        samples = position * 4 if position < len(loader) else rows + (position - len(loader)) * 4
        other = module(num_workers=2)
        other.load_state_dict({**other.state_dict(), "position": samples})
        assert same(stream(other, 80 - position), straight[position:])
    assert not same(stream(module(seed=1), 5), straight[:5])


def test_two_ranks_hide_what_one_hides(module, monkeypatch):
    one = stream(module(batch_size=8), 20)
    ranks = []
    for rank in range(2):
        data = module()
        monkeypatch.setattr(data, "data_ranks", lambda rank=rank: {"rank": rank, "num_ranks": 2})
        ranks.append(stream(data, 20))
    both = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*ranks, strict=True)]
    assert same(both, one)


@pytest.mark.parametrize("kind", ["bytes", "sentence pieces", "word pieces"])
def test_whole_words_are_hidden_whole(kind):
    text = "unbelievable results, corazón (naïve) words' interpretation 12345; supercalifragilistic" * 3
    corpus = ["the un be result word in ter pre", text[:30]] * 20
    if kind == "word pieces":
        tokenizer = lower_case([*corpus, text])
    else:
        tokenizer = byte_level(corpus, ()) if kind == "bytes" else sentence_piece(corpus, ())
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    masks = Masks(Masking(0.3, whole_words=True), tokenizer)
    ids = np.array(tokenizer(text, add_special_tokens=False).input_ids)
    words = masks.words(ids)
    spelled = [tokenizer.decode(ids[words == word]).strip() for word in range(words[-1] + 1)]
    assert {"12345", ";", "interpretation"} <= set(spelled)
    assert {"corazón", "corazon"} & set(spelled) and {"naïve", "naive"} & set(spelled)
    partly = 0
    for seed in range(30):
        hidden = masks.masked(Piece(ids), generator(seed)).labels != IGNORE
        shares = [hidden[words == word].mean() for word in range(words[-1] + 1)]
        partly += sum(0 < share < 1 for share in shares)
        assert 0 < np.mean(shares) < 0.7
    assert not partly


def test_framing_is_the_encoder_s_own(write_jsonl, cache, texts, tmp_path):
    """[CLS] and [SEP] as BERT has them; a tokenizer without an end of text will do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = lower_case(["a b c d e f g"] * 9)
    tokenizer.eos_token = None
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=list(ids.items())
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    settings = {"path": write_jsonl(["a b c", "d e"] * 5), "tokenizer": str(tmp_path / "bert"), "seq_len": 16,
                "batch_size": 2, "cache_dir": str(cache), "val_share": 0}  # fmt: skip
    data = TextDataModule(**settings, masking=Masking(0.5))
    data.prepare_data()
    data.setup("fit")
    row = whole(next(iter(data.train_dataloader())))[0].tolist()
    assert row[0] == ids["[CLS]"] and ids["[SEP]"] in row[2:6]
    with pytest.raises(DataError, match="it has no EOS token"):
        TextDataModule(**settings).prepare_data()


MISTAKES = {
    "masking: probability must lie between 0 and 1, not 1.0": {"masking": Masking(1.0)},
    "masking: probability must lie between 0 and 1, not 0": {"masking": Masking(0)},
    "fim and masking: give one of them": {"fim": "on"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(module, message):
    from datamodules.transformations.infilling import FillInTheMiddle

    settings = {name: FillInTheMiddle() if value == "on" else value for name, value in MISTAKES[message].items()}
    with pytest.raises(DataError, match=message):
        module(**settings)


def test_a_tokenizer_without_a_mask_is_refused():
    with pytest.raises(DataError, match="masking: the tokenizer has no mask token"):
        Masks(Masking(), byte_level(["a b c"], ()))
