"""Documents to fill in: nothing of them is lost, they are cut where an editor cuts, and are the same wherever made."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodules import DataError, TextDataModule
from datamodules.serving.collate import Piece
from datamodules.transformations.draws import generator
from datamodules.transformations.infilling import KNOWN, FillInTheMiddle, Infilling, Markers, find_markers
from tests.datamodules.transformations.tokenizers import byte_level, lower_case, sentence_piece, windows

ALPHABET = "ab xyzAZ_09.,(){}[]\n\t\r\"'<>|#=+ éßñ日本語🫀👨‍👩‍👧\u0301�\u00a0"
QWEN = KNOWN[0]


def random_text(seed: int, words: list[str]) -> str:
    rng = random.Random(seed)
    parts = [rng.choice(words) if rng.random() < 0.5 else rng.choice(ALPHABET) for _ in range(rng.randint(0, 60))]
    return "".join(parts)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    rng = random.Random(1)
    words = ["def", "return", "self", "import", "for", "while", "list", "value", "lambda", "token", "日本", "corazón"]
    return [" ".join(rng.choices(words, k=60)) for _ in range(40)]


@pytest.fixture(scope="module", params=["bytes", "sentence pieces", "bytes, DeepSeek"])
def tokenizer(request, corpus):
    if request.param == "sentence pieces":
        return sentence_piece(corpus)
    return byte_level(corpus, KNOWN[3 if "DeepSeek" in request.param else 0].names())


def infilling(tokenizer, rate=1.0, seq_len=10_000, seed=0, **settings) -> Infilling:
    return Infilling(FillInTheMiddle(rate, **settings), tokenizer, seq_len, seed)


def framed(made: Infilling, text: str) -> list[int]:
    return [*made.before, *made.parts.encode(text), *made.behind]


def test_every_document_comes_back_exactly(tokenizer, corpus):
    """Of any text, any cut, either order; and what was rearranged is not the document."""
    words = [f" {word}" for word in corpus[0].split()]
    both, changed = infilling(tokenizer), 0
    for seed in range(400):
        text = random_text(seed, words)
        ids = framed(both, text)
        assert both.restore(ids) == text
        new = both.rearrange(ids, generator(seed), 10_000)
        if text:
            assert both.restore(new) == text, seed
            assert new[: len(both.before)] == both.before and new[-len(both.behind) :] == both.behind
            changed += new != ids
        else:
            assert new is None
    assert changed > 350


def parts_of(made: Infilling, ids: list[int]) -> list[list[int]]:
    """Prefix, suffix and middle of a rearranged document (PSM)."""
    places = [ids.index(marker) for marker in (made.prefix, made.suffix, made.middle)]
    ends = [*places[1:], len(ids) - len(made.end) - len(made.behind)]
    return [ids[start + 1 : stop] for start, stop in zip(places, ends, strict=True)]


def test_seams_are_tokenized_as_at_inference(tokenizer, corpus):
    """Each part is what the tokenizer makes of that text alone, though it cuts tokens of the document."""
    psm, cut_tokens = infilling(tokenizer, spm_share=0.0), 0
    for seed, text in enumerate(corpus * 5):
        ids = framed(psm, text)
        prefix, suffix, middle = parts_of(psm, psm.rearrange(ids, generator(seed), 10_000))
        texts = [psm.parts.decode(part) for part in (prefix, middle, suffix)]
        assert "".join(texts) == text
        assert [prefix, middle, suffix] == [psm.parts.encode(part) for part in texts]
        if not psm.parts.anchor:
            assert prefix == tokenizer(texts[0], add_special_tokens=False).input_ids
        cut_tokens += [*prefix, *middle, *suffix] != psm.parts.encode(text)
    assert cut_tokens > 100


def test_both_orders_are_drawn_in_their_share(tokenizer, corpus):
    made = infilling(tokenizer, spm_share=0.25)
    ids = framed(made, corpus[0])
    rearranged = [made.rearrange(ids, generator(seed), 10_000) for seed in range(500)]
    begin = len(made.before)
    spm = [new for new in rearranged if new[begin : begin + 2] == [made.prefix, made.suffix]]
    # An empty prefix looks like it: 1 in 100 of the others, with some 300 characters in a text.
    assert 0.20 < len(spm) / 500 < 0.32
    assert all(made.restore(new) == corpus[0] for new in spm)


def test_pieces_that_begin_and_end_inside_of_a_character_come_back_too(tokenizer):
    made = infilling(tokenizer)
    text = "日本語🫀 corazón 👨‍👩‍👧 " * 12
    pieces = windows(framed(made, text), 13)
    assert len(pieces) > 10
    for seed, piece in enumerate(pieces):
        new = made.rearrange(piece, generator(seed), 100)
        _, inner, _ = made._taken_apart(piece)
        if not inner:  # the end of a document may stand alone
            assert new is None
            continue
        assert new[-len(made.behind) :] == made.behind
        assert made.restore(new) == made.parts.decode(inner)


def test_text_that_spells_a_marker_stays_text(tokenizer, corpus):
    made = infilling(tokenizer)
    text = f"a {made.markers.middle} b {made.markers.prefix} {tokenizer.eos_token} c" * 3
    ids = framed(made, text)
    assert made.parts.anchor or made.restore(ids) == text  # to SentencePiece `▁` is a space
    for seed in range(50):
        new = made.rearrange(ids, generator(seed), 10_000)
        assert new.count(made.middle) == 1 and made.restore(new) == made.restore(ids)


def test_what_has_no_room_stays_as_it_is(tokenizer, corpus):
    made = infilling(tokenizer)
    ids = framed(made, corpus[0])
    assert made.rearrange(ids, generator(0), len(ids)) is None
    tight = infilling(tokenizer, seq_len=len(ids) + 2)
    row = [Piece(np.array(ids, np.uint16))]
    assert np.array_equal(tight(row, time=0, number=0)[0].ids, row[0].ids)


@pytest.fixture
def module(write_jsonl, cache, texts):
    """Makes a DataModule over the texts, with small numbers."""
    path = write_jsonl(texts)

    def make(**settings) -> TextDataModule:
        defaults = {"path": path, "vocab_size": 400, "seq_len": 128, "batch_size": 4, "cache_dir": str(cache)}
        given = {**defaults, "fim": FillInTheMiddle(), **settings}
        return TextDataModule(**{name: value for name, value in given.items() if value is not None})

    return make


def ready(data: TextDataModule) -> TextDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def documents(batches, position="position_ids") -> list[list[int]]:
    """The documents of batches, without padding."""
    found = []
    for batch in batches:
        for ids, positions, labels in zip(batch["input_ids"], batch[position], batch["labels"], strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            found += [ids[a:b].tolist() for a, b in pairwise(starts) if (labels[a:b] != -100).any()]
    return found


def test_an_epoch_holds_every_training_text_once_at_other_cuts_than_the_one_before(module, texts):
    data = ready(module(seq_len=512, val_share=0.1))
    loader, made = data.train_dataloader(), data._infilling
    plain = ready(module(seq_len=512, val_share=0.1, fim=None))
    short = {text for text in texts if len(plain.tokenizer(text).input_ids) < 400}
    val = {plain.tokenizer.decode(ids[:-1]) for ids in documents(plain.val_dataloader())}
    epochs = [documents(loader) for _ in range(2)]
    for epoch in epochs:
        restored = [made.restore(ids) for ids in epoch]
        assert len(short - val) > 50 and short - val <= set(restored)
        rearranged = sum(made.middle in ids for ids in epoch)
        assert 0.4 < rearranged / len(epoch) < 0.6
    first, second = ({made.restore(ids): ids for ids in epoch if made.middle in ids} for epoch in epochs)
    twice = first.keys() & second.keys()
    assert len(twice) > 20 and all(first[text] != second[text] for text in twice)
    assert not any(made.middle in ids for ids in documents(data.val_dataloader()))
    assert torch.equal(
        next(iter(data.val_dataloader()))["position_ids"], next(iter(plain.val_dataloader()))["position_ids"]
    )
    assert data.statistics["train"]["padded_share"] < 0.1


def stream(data: TextDataModule, count: int) -> list[list[list[int]]]:
    loader, batches = data.train_dataloader(), []
    while len(batches) < count:
        batches += [batch["input_ids"].tolist() for batch in loader]
    return batches[:count]


def test_rows_are_the_same_for_any_number_of_workers_and_after_resuming(module, write_jsonl, texts):
    few = {"path": write_jsonl(texts[:100], "few.jsonl")}
    whole = stream(ready(module(**few)), 120)
    epoch = len(ready(module(**few)).train_dataloader())
    assert 20 < epoch < 100  # so that later epochs are among them
    assert stream(ready(module(num_workers=2, **few)), 120) == whole
    for position in (3, epoch + 5):
        data = ready(module(**few))
        num_rows = data.train_dataloader().order.epoch_len
        samples = position * 4 if position < epoch else num_rows + (position - epoch) * 4
        state = {**data.state_dict(), "position": samples}
        data.load_state_dict(state)
        assert stream(data, 120 - position) == whole[position:]
    assert stream(ready(module(seed=1, **few)), 3) != whole[:3]


def test_two_ranks_read_the_rows_of_one(module, monkeypatch):
    one = [row for batch in stream(ready(module(batch_size=8)), 30) for row in batch]
    ranks = []
    for rank in range(2):
        data = ready(module(batch_size=4))
        monkeypatch.setattr(data, "data_ranks", lambda rank=rank: {"rank": rank, "num_ranks": 2})
        ranks.append(stream(data, 30))
    assert [row for pair in zip(*ranks, strict=True) for batch in pair for row in batch] == one


def test_a_checkpoint_of_other_cuts_is_refused(module):
    saved = ready(module()).state_dict()
    for other in (None, FillInTheMiddle(rate=0.4), FillInTheMiddle(spm_share=0.0)):
        with pytest.raises(DataError, match="not those of the checkpoint"):
            ready(module(fim=other)).load_state_dict(saved)
    ready(module()).load_state_dict(saved)


def test_rows_of_which_something_is_kept_elsewhere_are_refused(module):
    data = ready(module())
    data.numbers_rows = True
    for serve in (data.train_dataloader, lambda: data.in_order("train")):
        with pytest.raises(DataError, match="fim: rows are others each time"):
            serve()


def test_the_preview_shows_markers(module):
    lines = "\n".join(ready(module(seq_len=1024, fim=FillInTheMiddle(1.0))).preview(6))
    assert "<|fim_prefix|>" in lines and "<|fim_middle|>" in lines


@pytest.mark.parametrize("name", ["rate", "spm_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(module, name, share):
    with pytest.raises(DataError, match=rf"fim: {name} must lie between 0 and 1, not {share}"):
        module(fim=FillInTheMiddle(**{name: share})).check()


def test_markers_are_found_by_family_or_by_name(corpus):
    for markers in KNOWN[:4]:
        assert find_markers(FillInTheMiddle(), byte_level(corpus, markers.names())) == markers
    assert find_markers(FillInTheMiddle(), sentence_piece(corpus)).end == "▁<EOT>"
    own = Markers("<a>", "<b>", "<c>")
    both = byte_level(corpus, [*own.names(), *QWEN.names()])
    assert find_markers(FillInTheMiddle(markers=own), both) == own
    bare = byte_level(corpus, ())
    with pytest.raises(
        DataError, match=r"no markers of a family.*<\|endoftext\|>.*fim.markers.*new_tokens='\[\"<\|fim_pre"
    ):
        find_markers(FillInTheMiddle(), bare)
    with pytest.raises(
        DataError, match=r"fim: the tokenizer has no token '<a>' \(fim.markers\); its control tokens are"
    ):
        find_markers(FillInTheMiddle(markers=own), bare)


def test_a_tokenizer_that_forgets_what_it_read_is_refused(corpus):
    tokenizer = lower_case(corpus)
    tokenizer.add_tokens(QWEN.names(), special_tokens=True)
    with pytest.raises(DataError, match="fim: this tokenizer does not give a text back"):
        infilling(tokenizer)
