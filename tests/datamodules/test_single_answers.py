"""Records of one answer and a label: every shape they come in, their rows and batches, and who refuses them."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from datamodules import DataError, PreferenceDataModule
from datamodules.records.shapes import PREFERENCE_SHAPES, detect_shape
from datamodules.records.single_answers import SingleAnswer, single_answer_of
from datamodules.sources.bad_records import LeftOut
from datamodules.sources.units import Bad
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.datamodules.conftest import EMOJI, SPANISH
from tests.datamodules.test_preference import answers, ready
from tests.datamodules.test_preference_records import talk

SHARED = Path(__file__).parents[3] / "shared" / "data"


def convert(record, columns=None, labels=None):
    shape = detect_shape([record], columns, "a.jsonl", PREFERENCE_SHAPES).name
    return single_answer_of(record, shape, columns, labels)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "¿Qué es?", "completion": "Un gato.", "label": True},
        {"prompt": talk("¿Qué es?"), "completion": talk("", "Un gato.")[1:], "label": True},
        {"prompt": talk("¿Qué es?"), "completion": talk("¿Qué es?", "Un gato."), "label": True},
        {"prompt": "\n\nHuman: ¿Qué es?\n\nAssistant:", "completion": "Un gato.", "label": 1},
        {"prompt": "¿Qué es?", "response": "Un gato.", "desirable": "yes"},
        {"messages": talk("¿Qué es?", "Un gato."), "label": 1.0},
        {"messages": talk("¿Qué es?", "Un gato."), "feedback": "Thumbs up", "prompt": "¿Qué es?"},
        {
            "conversations": [{"from": "human", "value": "¿Qué es?"}, {"from": "gpt", "value": "Un gato."}],
            "kto_tag": True,
        },
        {"instruction": "¿Qué es?", "input": "", "output": "Un gato.", "label": "desirable"},
        {"question": "¿Qué es?", "answer": "Un gato.", "is_desirable": "true"},
        {"question": "¿Qué es?", "response": "Un gato.", "thumbs_up": "👍"},
        {"input": "¿Qué es?", "output": "Un gato.", "label": "good"},
    ],
)
def test_one_answer_in_every_shape(record):
    assert convert(record) == SingleAnswer(talk("¿Qué es?", "Un gato."), True, 1)


def test_columns_and_labels_of_ones_own():
    record = {"frage": "¿Qué es?", "antwort": "Un gato.", "urteil": "mies", "label": "zoo"}
    columns = {"question": "frage", "answer": "antwort", "feedback": "urteil"}
    assert "data.labels={'mies': desirable}" in convert(record, columns).reason
    found = convert(record, columns, {"mies": "undesirable", "zoo": "first"})
    assert (found.messages, found.is_desirable) == (talk("¿Qué es?", "Un gato."), False)


@pytest.mark.parametrize(("label", "meaning"), [(False, False), (0, False), ("bad", False), ("NO", False), ("5", True)])
def test_labels(label, meaning):
    found = convert({"prompt": "a", "completion": "b", "label": label}, labels={"5": "desirable", "1": "undesirable"})
    assert found.is_desirable is meaning


def test_the_answer_is_what_stands_behind_the_prompt():
    asked = [{"role": "system", "content": "s"}, *talk("a", "b", "c")]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rest = [call, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "It is 3."}]
    of_prompt = convert({"prompt": asked, "completion": rest, "label": True})
    assert (len(of_prompt.messages), of_prompt.num_prompt) == (7, 4) and of_prompt.prompt == asked
    of_messages = convert({"messages": [*asked, *rest], "label": True})
    assert (len(of_messages.messages), of_messages.num_prompt) == (7, 6)
    thought = convert({"system": "s", "question": "a", "answer": "b", "reasoning": "hm", "label": 0})
    assert thought.messages[-1]["content"] == "<think>\nhm\n</think>\n\nb" and thought.num_prompt == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "completion": " ", "label": True}, "with an empty answer"),
        ({"prompt": "a", "completion": None, "label": True}, "with an empty answer"),
        ({"messages": talk("a", ""), "label": True}, "with an empty answer"),
        ({"prompt": "a", "completion": "b", "label": None}, "without a label"),
        ({"prompt": "a", "completion": "b", "label": " "}, "without a label"),
    ],
)
def test_what_says_nothing_is_left_out(record, reason):
    found = convert(record)
    assert isinstance(found, LeftOut) and found.reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "completion": "b", "label": 4}, "column 'label' says '4', and it is not known whether"),
        ({"prompt": "a", "completion": "b", "label": -1}, "data.labels={'-1': desirable}"),
        ({"prompt": "a", "completion": "b", "label": 0.5}, "says '0.5'"),
        ({"prompt": "a", "completion": "b", "label": ["good"]}, "data.labels="),
        ({"prompt": "a", "completion": True, "label": 1}, "completion' holds true or false"),
        ({"messages": talk("a"), "label": 1}, "'messages' does not end with the assistant's turn"),
        ({"messages": [{"role": "assistant", "content": "b"}], "label": 1}, "has no prompt"),
        ({"messages": ["a"], "label": 1}, "does not end with the assistant"),
        ({"prompt": "a", "completion": [{"role": "wizard", "content": "b"}], "label": 1}, "unknown role 'wizard'"),
    ],
)
def test_what_is_wrong_is_said(record, reason):
    found = convert(record)
    assert isinstance(found, Bad) and reason in found.reason, found


@pytest.mark.parametrize(
    ("record", "shape"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": 1}, "prompt-pair"),
        ({"prompt": "a", "output_1": "b", "output_2": "c", "output": "b", "label": 1}, "labelled-prompt"),
        ({"question": "a", "choices": ["b", "c"], "answer": "b", "label": 0}, "question-choice"),
    ],
)
def test_a_label_of_pairs_or_of_options_stays_theirs(record, shape):
    assert detect_shape([record], None, "a.jsonl", PREFERENCE_SHAPES).name == shape


def singles(count):
    return [
        {
            "prompt": f"{i * 7919} {SPANISH[i : i + 12]}? " * 4,
            "completion": f"{i} {EMOJI[: i % 20] if i % 3 else 'no ' * (i % 9)}.",
            "label": bool(i % 3),
        }
        for i in range(count)
    ]


@pytest.fixture
def module(tmp_path, cache):
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")

    def make(*files, **settings):
        paths = [tmp_path / f"data-{number}.jsonl" for number, _ in enumerate(files or [0])]
        for path, data in zip(paths, files or [singles(40)], strict=True):
            path.write_text("".join(json.dumps(record) + "\n" for record in data))
        defaults = {
            "path": [str(path) for path in paths], "tokenizer": str(tmp_path / "tokenizer"), "seq_len": 512,
            "batch_size": 1, "val_share": 0.0, "template": "chatml", "cache_dir": str(cache),
        }  # fmt: skip
        return PreferenceDataModule(**defaults | settings)

    return make


PAIRS = [{"prompt": f"{i}, or {i + 1}? " * 9, "chosen": f"{i}, yes", "rejected": f"no {i}"} for i in range(20)]


def said(data, loader):
    """(is_desirable, prompt's last token, answer) of each answer there is."""
    found = []
    for batch in loader:
        assert len(batch["num_targets"]) == 2 * len(batch["ties"]) and batch["chosen_scores"].isnan().all()
        lengths = zip(batch["chosen_lengths"].tolist(), batch["rejected_lengths"].tolist(), strict=True)
        there = [bool(length) for pair in lengths for length in pair]
        assert there == [bool(count) for count in batch["num_targets"].tolist()]
        kept = {**batch, "num_targets": batch["num_targets"][batch["num_targets"] > 0]}
        labels = [place % 2 == 0 for place, is_there in enumerate(there) if is_there]
        found += [(label, *one) for label, one in zip(labels, answers(kept, data.tokenizer), strict=True)]
    return found


@pytest.mark.parametrize("share_prompts", [True, False])
def test_every_answer_is_served_once_an_epoch_with_its_label_and_pairs_beside_it(module, share_prompts):
    data = ready(module(singles(40), PAIRS, val_share=0.2, share_prompts=share_prompts))
    found = said(data, data.train_dataloader()) + said(data, data.val_dataloader())
    wanted = [(record["label"], "\n", f"{record['completion']}<|im_end|>") for record in singles(40)]
    wanted += [(True, "\n", f"{pair['chosen']}<|im_end|>") for pair in PAIRS]
    wanted += [(False, "\n", f"{pair['rejected']}<|im_end|>") for pair in PAIRS]
    assert sorted(found) == sorted(wanted)
    (up, down), (val_up, val_down) = (data.num_labelled(part) for part in ("train", "val"))
    assert (up + val_up, down + val_down) == (26 + 20, 14 + 20) and val_up and val_down
    totals = [
        sum(data.statistics[part][name] for part in ("train", "val")) for name in ("num_desirable", "num_undesirable")
    ]
    assert totals == [26, 14]


def test_a_single_answer_is_one_document_of_the_row(module):
    (batch,) = ready(module(singles(1))).train_dataloader()
    (row, start, end, *prompt), _ = batch["spans"].tolist()
    assert (row, start, prompt) == (0, 0, [0, 0])
    assert batch["chosen_ends"].tolist() == batch["rejected_ends"].tolist() == [end - 1]


def test_the_summary_and_the_preview_tell_the_labels(module, capfd, caplog):
    caplog.set_level("INFO")
    data = ready(module(singles(9), PAIRS[:2]))
    assert "2 pairs and 9 single answers (6 desirable : 3 undesirable)" in data.in_words(data.statistics["train"])
    lines = list(data.preview(3))
    assert lines[0].startswith("--- answer 1: undesirable, ") and lines[1].startswith("<|im_start|>user\n")
    assert lines[2].startswith("⟪0 .<|im_end|>") and lines[3].startswith("--- answer 2: desirable, ")
    assert any("pairs       2, 0 of them copies" in line for line in lines)
    assert any("answers     9 single ones, 0 of them copies of another: 6 desirable" in line for line in lines)


def test_answers_to_one_question_stay_on_one_side(module):
    data = [
        {"question": f"{i * 7919} {SPANISH[i : i + 12]}?", "answer": f"{i} {label}", "label": label}
        for i in range(20)
        for label in (True, False)
    ]
    loaded = ready(module(data, val_share=0.3))
    asked = [
        {answer.split()[0] for _, _, answer in said(loaded, loader)}
        for loader in (loaded.train_dataloader(), loaded.val_dataloader())
    ]
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 20 and asked[1]


def test_prompts_meet_the_answers_of_other_prompts(module):
    data = [
        {"prompt": f"{i} {i * 7919}?", "completion": f"{i}-{label}", "label": bool(label)}
        for i in range(12)
        for label in (1, 0)
    ]
    loaded = ready(module(data, seq_len=128))
    seen = 0
    for batch in loaded.mismatches("train"):
        spans = batch["spans"].tolist()
        for (_, start, end, *_), (_, answer) in zip(spans, answers(batch, loaded.tokenizer), strict=False):
            prompt = loaded.tokenizer.decode(batch["input_ids"][0, start:end]).split("user\n")[1].split()[0]
            assert answer.split("-")[0] != prompt
            seen += 1
    assert seen == 24


@pytest.mark.parametrize(("too_long", "kept"), [("drop", 1), ("left", 2), ("right", 2)])
def test_too_long_answers(module, too_long, kept):
    data = [
        {"prompt": "short", "completion": "yes", "label": True},
        {"prompt": "word " * 200, "completion": "yes", "label": False},
        {"prompt": "ask", "completion": "a " * 300, "label": True},
    ]
    loaded = ready(module(data, seq_len=128, too_long=too_long))
    found = [answer for _, _, answer in said(loaded, loaded.train_dataloader())]
    assert len(found) == kept and "yes<|im_end|>" in found
    left_out = dict(loaded._train[0][1][0].statistics["left_out"])
    reasons = {"left": "with an answer that is longer than a row", "right": "leaves no answer"}
    assert too_long == "drop" or reasons[too_long] in next(iter(left_out))


def test_who_needs_pairs_refuses_them_at_the_first_look_and_after_it(module):
    words = r"path: '.*data-1.jsonl' holds single answers .*\(prompt-single\), and this loss needs pairs.*kind kto"
    early, late = module(PAIRS, singles(4)), ready(module(PAIRS, singles(4)))
    early.require_pairs("this loss")
    with pytest.raises(DataError, match=words):
        early.check()
    with pytest.raises(DataError, match=words):
        early.build(look_again=True)
    with pytest.raises(DataError, match=words):
        late.require_pairs("this loss")
    only_pairs = ready(module(PAIRS))
    only_pairs.require_pairs("this loss")


def test_no_reward_model_is_judged_by_them(module):
    with pytest.raises(DataError, match=r"holds single answers .* judging a reward model needs pairs"):
        list(module().judged_pairs(Counter()))


def test_bad_labels_stop_by_file_and_line_or_are_counted(module):
    data = [*singles(4), {"prompt": "a", "completion": "b", "label": "meh"}]
    with pytest.raises(DataError, match=r"data-0\.jsonl:5: column 'label' says 'meh'.*data\.labels"):
        module(data).prepare_data()
    assert ready(module(data, labels={"meh": "undesirable"})).num_labelled("train") == (2, 3)
    with pytest.warns(UserWarning, match="1 bad records were skipped"):
        assert ready(module(data, on_bad_record="skip")).num_labelled("train") == (2, 2)
    with pytest.raises(DataError, match="labels: 'meh' can mean first, second, tie, desirable, undesirable, not 'so'"):
        module(data, labels={"meh": "so"}).check()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
def test_a_real_file(module):
    path = SHARED / "llamafactory" / "kto_en_demo.json"
    labels = Counter(record["label"] for record in json.loads(path.read_text()))
    data = ready(module(path=str(path), seq_len=8192))
    assert data.num_labelled("train") == (labels[True], labels[False]) and math.isclose(sum(labels.values()), 300)
