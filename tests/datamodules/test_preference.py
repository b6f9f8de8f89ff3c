"""PreferenceDataModule: every pair once, laid out as the template writes it, and nothing of it on both sides."""

import json
from pathlib import Path

import pytest
import torch

from datamodules import DataError, PreferenceDataModule
from datamodules.encoding import tokenization
from datamodules.serving.pairs import Pairs
from datamodules.sources import text_files
from datamodules.storage.near_duplicates import signature
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.datamodules.conftest import EMOJI, SPANISH

SHARED = Path(__file__).parents[3] / "shared" / "data"
CHATML = "<|im_start|>{}\n{}<|im_end|>\n"


def records(count):
    return [
        {
            "prompt": f"{i * 7919} {SPANISH[i : i + 12]}? " * 4,
            "chosen": f"{i} {EMOJI[: i % 20]}",
            "rejected": f"{i} {'no ' * (i % 9)}.",
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def module(tmp_path, cache):
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")

    def make(data=None, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in (records(60) if data is None else data)))
        defaults = {
            "path": str(path), "tokenizer": str(tmp_path / "tokenizer"), "seq_len": 512, "batch_size": 1,
            "val_share": 0.0, "template": "chatml", "cache_dir": str(cache),
        }  # fmt: skip
        return PreferenceDataModule(**defaults | settings)

    return make


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def texts(data, loader):
    """(chosen, rejected) of each pair of an epoch, put together again from what the model is given."""
    found = []
    for batch in loader:
        T = batch["input_ids"].shape[1]
        ids, positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
        by_end = {
            row * T + end - 1: (row, start, end, first, last)
            for row, start, end, first, last in batch["spans"].tolist()
        }
        for ends in zip(batch["chosen_ends"].tolist(), batch["rejected_ends"].tolist(), strict=True):
            pair = []
            for end in ends:
                row, start, stop, first, last = by_end[end]
                places = [*range(row * T + first, row * T + last), *range(row * T + start, row * T + stop)]
                assert positions[places].tolist() == list(range(len(places)))
                pair.append(data.tokenizer.decode(ids[places]))
            found.append(tuple(pair))
    return found


def expected(record):
    prompt = CHATML.format("user", record["prompt"])
    return tuple(prompt + CHATML.format("assistant", record[name]) for name in ("chosen", "rejected"))


@pytest.mark.parametrize("share_prompts", [True, False])
def test_every_pair_is_served_once_an_epoch_as_the_template_writes_it(module, share_prompts):
    data = ready(module(val_share=0.1, share_prompts=share_prompts))
    train, val = texts(data, data.train_dataloader()), texts(data, data.val_dataloader())
    assert sorted(train + val) == sorted(map(expected, records(60))) and len(val) == 6
    assert any(b["spans"][:, 4].any() for b in data.train_dataloader()) == share_prompts


def test_sharing_prompts_saves_their_tokens(module):
    shared, whole = (ready(module(share_prompts=share)).statistics["train"]["num_tokens"] for share in (True, False))
    assert shared < 0.7 * whole


def test_processes_and_a_single_one_make_the_same_batches(module, monkeypatch, tmp_path):
    monkeypatch.setattr(text_files, "unit_bytes", lambda _: 4096)
    batches = []
    for cores in (1, 2):
        monkeypatch.setattr(tokenization, "available_cores", lambda cores=cores: cores)
        data = ready(module(cache_dir=str(tmp_path / f"cache-{cores}")))
        assert len(data._train[0][1]) > 2
        batches.append(list(data.train_dataloader()))
    for one, two in zip(*batches, strict=True):
        assert all(torch.equal(torch.nan_to_num(one[name]), torch.nan_to_num(two[name])) for name in one)


def test_it_goes_on_where_a_checkpoint_was_taken(module):
    straight = list(ready(module()).train_dataloader())
    first = ready(module())
    loader = iter(first.train_dataloader())
    head = [next(loader) for _ in range(3)]
    second = ready(module())
    second.load_state_dict(first.state_dict())
    rest = second.train_dataloader()
    assert torch.equal(next(iter(rest))["input_ids"], straight[3]["input_ids"])
    assert torch.equal(head[2]["input_ids"], straight[2]["input_ids"])


def test_what_says_nothing_is_left_out_and_counted(module, capfd):
    odd = [
        {"prompt": "empty", "chosen": "", "rejected": "b"},
        {"prompt": "same", "chosen": "b", "rejected": "b"},
        {"prompt": "same", "chosen": "b", "rejected": "b "},
    ]
    data = ready(module(records(10) + odd, template=None))
    assert data.statistics["train"]["num_documents"] == 11
    chatml_trims = ready(module(records(10) + odd[:2]))
    assert chatml_trims.statistics["train"]["num_documents"] == 10


@pytest.mark.parametrize(
    ("too_long", "kept", "reason"), [("drop", 1, ""), ("left", 3, ""), ("right", 2, "once they are cut")]
)
def test_too_long_pairs(module, too_long, kept, reason):
    data = [
        {"prompt": "short", "chosen": "yes", "rejected": "no"},
        {"prompt": "word " * 200, "chosen": "yes", "rejected": "no"},
        {
            "prompt": "long answers that differ at their ends",
            "chosen": "w " * 290 + "yes",
            "rejected": "w " * 290 + "no",
        },
    ]
    if too_long == "right":
        data[1] = {"prompt": "ask", "chosen": "a " * 300, "rejected": "no"}
        data[2]["rejected"] = "w " * 290 + "no"
    made = module(data, seq_len=256, too_long=too_long)
    statistics = ready(made).statistics["train"]
    assert statistics["num_documents"] - statistics["num_dropped"] == kept
    for chosen, rejected in texts(made, made.train_dataloader()):
        assert chosen != rejected and (too_long != "left" or chosen.endswith("<|im_end|>\n"))
    left_out = dict(made._train[0][1][0].statistics["left_out"])
    assert any(reason in words for words in left_out) if reason else not left_out


def test_near_duplicate_prompts_never_straddle_the_split(module):
    base = [
        "Tell me about the city of " + name for name in ("Paris", "Rome", "Lima", "Oslo", "Quito", "Cairo", "Tunis")
    ]
    data = [
        {"prompt": f"{question}, its history, its people, its food and the weather that one meets there{end}",
         "chosen": f"yes {i} {j}", "rejected": f"no {i} {j}"}
        for i, question in enumerate(base) for j, end in enumerate([".", "?", " in May.", " in June.", "!!"])
    ]  # fmt: skip
    unlike = [{"prompt": f"{hash((i, 'x'))} {i * 7919}" * 6, "chosen": "a", "rejected": "b"} for i in range(80)]
    made = ready(module(data + unlike, val_share=0.3))
    train, val = texts(made, made.train_dataloader()), texts(made, made.val_dataloader())
    assert len(train) + len(val) == 115 and 0 < len(val) < 35

    def prompts(pairs):
        return [signature(chosen.split("<|im_end|>")[0].removeprefix("<|im_start|>user\n")) for chosen, _ in pairs]

    assert not any((a == b).any() for a in prompts(train) for b in prompts(val))


BAD = {
    "broken JSON": "{\n",
    "spells the special token": json.dumps({"prompt": "<|im_start|>", "chosen": "b", "rejected": "c"}) + "\n",
    "no column rejected": json.dumps({"prompt": "a", "chosen": "b"}) + "\n",
    "not a number": json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}) + "\n",
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_stops_by_file_and_line_or_is_counted(module, reason):
    data = module()
    path = Path(data.path)
    path.write_text(path.read_text() + BAD[reason])
    with pytest.raises(DataError, match=r"data\.jsonl:61: .*" + reason):
        data.prepare_data()
    data.on_bad_record = "skip"
    with pytest.warns(UserWarning, match=r"1 bad records were skipped.*data\.jsonl:61"):
        assert ready(data).statistics["train"]["num_documents"] == 60


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": None}, "tokenizer: none is named"),
        ({"columns": {"prompt": "frage"}}, "frage"),
        ({"seq_len": 8}, "seq_len: all 60 documents"),
        ({"document_mask": False}, "document_mask: pairs must not see each other"),
        ({"path": None}, "path and sources: give one"),
    ],
)
def test_a_mistake_is_named(module, settings, words):
    with pytest.raises(DataError, match=words):
        module(**settings).prepare_data()


def test_padding_never_looks_like_the_end_of_a_text(module, tmp_path):
    data = ready(module(template=None))
    assert data.tokenizer.pad_token == "<|im_start|>"  # its own was the end of a turn
    assert "padding" not in str(data.tokenizer.eos_token)
    assert data.tokenizer.eos_token_id != data.tokenizer.pad_token_id


def test_margins_ties_and_scores_reach_the_batch(module):
    data = [
        {"prompt": "a", "output_1": "b", "output_2": "c", "label": 2, "score_1": 1, "score_2": 4, "margin": 2},
        {"prompt": "d", "output_1": "e", "output_2": "f", "label": "tie"},
    ]
    (batch,) = list(ready(module(data)).train_dataloader())
    tie = int(batch["ties"].nonzero())
    assert (batch["margins"][1 - tie], batch["chosen_scores"][1 - tie], batch["rejected_scores"][1 - tie]) == (2, 4, 1)
    assert batch["chosen_scores"][tie].isnan()
    (batch,) = list(ready(module(data, score_margins=True)).train_dataloader())
    assert batch["margins"].tolist() == ([3, 0] if tie else [0, 3])


def test_preview(module, monkeypatch):
    data = ready(module([*records(2), records(2)[1]]))
    lines = list(data.preview(1))
    assert "tokens in common" in lines[0] and lines[1].startswith("<|im_start|>user\n")
    assert lines[2].startswith("⟦") and lines[3].startswith("⟪") and lines[2].endswith("<|im_end|>\n⟧")
    assert any("pairs       3, 1 of them copies" in line for line in lines)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(data.preview(1))[2].startswith("\033[32m")


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
@pytest.mark.parametrize(
    ("file", "pairs"), [("hh_rlhf_harmless/test.jsonl.gz", 2308), ("llamafactory/dpo_en_demo.json", 300)]
)
def test_real_files(module, file, pairs):
    data = ready(module(path=str(SHARED / file), seq_len=8192, val_share=0.05))
    assert sum(statistics["num_documents"] for statistics in data.statistics.values()) == pairs
    assert len(Pairs(data._train)) + len(Pairs(data._val)) == pairs
    seen = sum(len(batch["ties"]) for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader)
    assert seen == pairs - sum(statistics["num_dropped"] for statistics in data.statistics.values())


IN_SHAPES = {
    "implicit prompt": lambda prompt, good, bad: {
        "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {good}", "rejected": f"\n\nHuman: {prompt}\n\nAssistant: {bad}"
    },
    "prompt": lambda prompt, good, bad: {"prompt": prompt, "chosen": good, "rejected": bad, "margin": 1.5},
    "messages": lambda prompt, good, bad: {
        "messages": [{"role": "user", "content": prompt}],
        "chosen": {"role": "assistant", "content": good}, "rejected": {"role": "assistant", "content": bad},
    },
    "response_j": lambda prompt, good, bad: {"question": prompt, "response_j": good, "response_k": bad, "qid": 1},
    "labelled": lambda prompt, good, bad: {"prompt": prompt, "output_1": bad, "output_2": good, "label": 2},
}  # fmt: skip


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
@pytest.mark.parametrize("shape", IN_SHAPES)
def test_real_preferences_say_the_same_in_every_shape(module, shape):
    records = json.loads((SHARED / "llamafactory" / "dpo_en_demo.json").read_text())
    single = [record for record in records if len(record["conversations"]) == 1]
    said = [[record["conversations"][0], record["chosen"], record["rejected"]] for record in single]
    converted = [IN_SHAPES[shape](*(message["value"].strip() for message in messages)) for messages in said]
    found = []
    for data in (single, converted):
        loaded = ready(module(data, seq_len=4096))
        found.append(sorted(texts(loaded, loaded.train_dataloader())))
    assert found[0] == found[1] and len(found[0]) > 80


def test_nothing_left_to_validate_on_is_said(module):
    data = [{"prompt": "one and the same question" + "!" * i, "chosen": f"a {i}", "rejected": "b"} for i in range(30)]
    data += [{"prompt": "one and the same questions", "chosen": f"c {i}", "rejected": "d"} for i in range(30)]
    with pytest.raises(DataError, match="val_share"):
        ready(module(data, val_share=0.1))


NONE_LEFT = {
    "2 with an empty answer": [
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"prompt": "c", "chosen": "d", "rejected": None},
    ],
    "1 of two answers that are the same": [{"prompt": "a", "chosen": "b", "rejected": "b"}],
    "2 bad records were skipped; the first: .*jsonl:1: .* no content": [
        {"prompt": "a", "chosen": {"role": "assistant", "text": "x"}, "rejected": "b"},
        {"prompt": "a", "chosen": 3, "rejected": []},
    ],
}


@pytest.mark.parametrize("reason", NONE_LEFT)
@pytest.mark.parametrize("val_share", [0.0, None, 0.5])
def test_where_no_pair_is_left_it_is_said_why(module, reason, val_share):
    with pytest.raises(DataError, match=f"path: there is nothing to train on in .*: (left out: )?{reason}"):
        ready(module(NONE_LEFT[reason], val_share=val_share, on_bad_record="skip"))


def test_no_pair_to_validate_on(module, tmp_path):
    (tmp_path / "val.jsonl").write_text(json.dumps(NONE_LEFT["1 of two answers that are the same"][0]) + "\n")
    with pytest.raises(DataError, match=r"val_path: there is nothing to train on in .*val.jsonl.*: left out: 1 of two"):
        ready(module(val_share=None, val_path=str(tmp_path / "val.jsonl")))


@pytest.mark.parametrize(
    "answer", [{"text": "b"}, {"role": "assistant"}, {}, {"role": "assistant", "text": "b"}, [{"text": "b"}]]
)
def test_an_answer_of_unknown_form_is_bad_and_not_empty(module, answer):
    with pytest.raises(DataError, match=r"data.jsonl:61: (column|turn 1 of) '?chosen'?: it has no (role|content)"):
        ready(module([*records(60), {"prompt": "a", "chosen": answer, "rejected": "c"}]))


def answers(batch, tokenizer):
    """The answers whose probability counts, and what their tokens are predicted after."""
    T = batch["input_ids"].shape[1]
    ids, found, begin = batch["input_ids"].flatten(), [], 0
    for count in batch["num_targets"].tolist():
        places = batch["target_positions"][begin : begin + count]
        targets = batch["targets"][begin : begin + count]
        begin += count
        followed = [(int(ids[p + 1]) if (p + 1) % T else -1) == int(t) for p, t in zip(places, targets, strict=True)]
        assert sum(followed) >= len(followed) - 1  # a rejected answer goes on elsewhere than behind what it shares
        found.append((tokenizer.decode(ids[places[:1]]), tokenizer.decode(targets)))
    return found


@pytest.mark.parametrize("share_prompts", [True, False])
def test_the_tokens_of_answers_are_those_behind_the_prompt_to_the_end_of_the_turn(module, share_prompts):
    same_beginning = {"prompt": "Which of them is it? " * 3, "chosen": "It is the first.", "rejected": "It is mine."}
    data = ready(module([*records(12), same_beginning], share_prompts=share_prompts))
    found = [one for batch in data.train_dataloader() for one in answers(batch, data.tokenizer)]
    wanted = [
        record[name] + "<|im_end|>" for record in [*records(12), same_beginning] for name in ("chosen", "rejected")
    ]
    assert sorted(text for _, text in found) == sorted(wanted)
    assert {before for before, _ in found} == {"\n"}


def test_of_conversations_that_part_earlier_all_later_replies_count(module):
    begin = [{"role": "user", "content": "Hello, who are you, and why?"}]
    chosen = [
        *begin,
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "B."},
    ]
    rejected = [
        *begin,
        {"role": "assistant", "content": "C."},
        {"role": "user", "content": "No?"},
        {"role": "assistant", "content": "D."},
    ]
    data = ready(module([{"chosen": chosen, "rejected": rejected}]))
    (batch,) = data.train_dataloader()
    texts = data.tokenizer.decode(batch["targets"])
    assert texts == "A.<|im_end|>B.<|im_end|>C.<|im_end|>D.<|im_end|>"


def test_prompts_meet_the_answers_of_other_prompts(module):
    data = ready(module(records(20), seq_len=256))
    loader, said = data.train_dataloader(), {record["prompt"]: record for record in records(20)}
    pairs = {}
    for batch in loader:
        starts = batch["spans"][::2]
        for number, (row, start, *_) in zip(batch["numbers"].tolist(), starts.tolist(), strict=False):
            pairs[number] = data.tokenizer.decode(batch["input_ids"][row, start : start + 60])
    assert sorted(pairs) == list(range(20))
    found = {}
    for batch in data.mismatches("train"):
        spans = batch["spans"].tolist()
        for number, (_, start, end, *_), (_, answer) in zip(
            batch["numbers"].tolist(), spans, answers(batch, data.tokenizer), strict=False
        ):
            prompt = data.tokenizer.decode(batch["input_ids"][0, start:end]).split("<|im_end|>")[0].split("user\n")[1]
            found[number] = answer
            own = next(record for record in said.values() if record["prompt"].strip() == prompt.strip())
            other = [record for record in said.values() if record["prompt"] != own["prompt"]]
            assert answer in {record[name] + "<|im_end|>" for record in other for name in ("chosen", "rejected")}
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize(("batch_size", "count"), [(1, 4), (2, 2), (4, 1)])
def test_mismatches_of_a_step_are_the_same_however_it_is_cut(module, batch_size, count):
    data = ready(module(records(40), seq_len=256, batch_size=batch_size))
    loader = iter(data.train_dataloader())
    first = next(loader)
    batches = list(data.mismatches("train", count))
    numbers = sorted(number for batch in batches for number in batch["numbers"].tolist())
    straight = ready(module(records(40), seq_len=256, batch_size=4))
    (whole,) = [batch for batch, _ in zip(straight.train_dataloader(), range(1), strict=False)]
    assert numbers == sorted(whole["numbers"].tolist()) and set(first["numbers"].tolist()) <= set(numbers)
    assert next(loader)["input_ids"].shape == first["input_ids"].shape  # training goes on undisturbed
