import json
from dataclasses import replace

import pytest

from benchmarks.runner import OURS, measure
from benchmarks.sft import CONTENDERS, differences, our_command
from benchmarks.sft_workload import SFT_QUICK, SFTJob, enough, pair_of, prepare, read_pairs, write_pairs

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE = replace(
    SFT_QUICK, config=SFT_QUICK.config | TINY | {"intermediate_size": 64, "vocab_size": 512}, seq_len=64, steps=4
)


def job(**changes):
    plain = SFTJob(
        folder="model", records="records.jsonl", scratch="run", result="result.json", rows=1, seq_len=64, batch_size=2,
        warmup=1, method="full", precision="32-true", device="cpu",
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "What is", "input": "1 + 1?", "output": " 2\n"},
        {"question": "What is\n1 + 1?", "answer": "2"},
        {"prompt": "What is\n1 + 1?", "completion": "2"},
    ],
)
def test_three_shapes_become_the_same_pair(record):
    assert pair_of(record) == {
        "prompt": [{"role": "user", "content": "What is\n1 + 1?"}],
        "completion": [{"role": "assistant", "content": "2"}],
    }


def test_another_shape_is_refused_by_its_fields():
    with pytest.raises(ValueError, match="text, label"):
        pair_of({"text": "a", "label": "b"})


def test_files_of_lines_and_of_a_list_read_the_same(tmp_path):
    # A line separator inside a string ends no line of the file.
    records = [{"question": f"{i}\u2028?", "answer": "yes"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    (tmp_path / "a.json").write_text(json.dumps(records))
    pairs = read_pairs(tmp_path / "a.jsonl")
    assert pairs == read_pairs(tmp_path / "a.json") and len(pairs) == 3


def test_records_start_over_until_there_are_enough_tokens():
    assert list(enough([3, 4], 8)) == [0, 1, 0]
    assert list(enough([3, 4], 7)) == [0, 1]


def test_prepared_records_fit_and_their_template_marks_the_reply(tmp_path):
    from transformers import AutoTokenizer

    records = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}."} for i in range(20)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in [*records, {"question": "x " * 200, "answer": "y"}]))
    prepared = prepare(tmp_path, str(data), SHAPE, None)
    assert prepared.num_too_long == 1 and len(prepared.pairs) == 20
    tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
    pair = prepared.pairs[0]
    prompt = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(pair["prompt"] + pair["completion"])["input_ids"]
    assert whole[: len(prompt)] == prompt and len(whole) == prepared.lengths[0]
    assert tokenizer.decode(whole[len(prompt) :]) == pair["completion"][0]["content"] + "<|im_end|>"
    assert tokenizer.eos_token_id in whole[len(prompt) :]


def test_our_command_asks_for_adapters_only_where_they_are_compared():
    assert not [flag for flag in our_command(job(), None) if "peft" in flag]
    flags = our_command(job(method="lora", compile=True), None)
    assert "--model.peft=peft.LoraConfig" in flags and "--model.peft.r=16" in flags
    assert "--model.backbone.compile=true" in flags


def test_figures_are_per_trained_token():
    counts = {"trained": 60.0, "tokens": 100.0, "records": 4.0, "trained_in_all": 90.0}
    figures = job().figures(counts | {"wall_s": 2.0, "cpu_s": 4.0, "peak_memory_mb": 10.0, "loss": 1.0})
    assert figures["trained_tokens_per_s"] == 30 and figures["trained_tokens_per_cpu_s"] == 15
    assert figures["tokens_per_s"] == 50 and figures["records_per_s"] == 2 and figures["trained_tokens"] == 90


def test_a_contender_that_did_other_work_is_named():
    figures = {
        OURS: [{"trained_tokens": 1000}],
        "trl": [{"trained_tokens": 1005}],
        "trl-tuned": [{"trained_tokens": 900}],
    }
    (line,) = differences(figures)
    assert line.startswith("trl-tuned") and "900" in line


def test_names_are_unique():
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names) and OURS in names


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_ours_learns_every_reply_once(tmp_path, method):
    from transformers import AutoTokenizer

    data, records = tmp_path / "data.jsonl", tmp_path / "records.jsonl"
    questions = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}."} for i in range(40)]
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    prepared = prepare(tmp_path, str(data), SHAPE, None)
    write_pairs(records, prepared.pairs)
    tokenizer = AutoTokenizer.from_pretrained(prepared.folder)
    prompts = [
        len(tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"])
        for pair in prepared.pairs
    ]
    contender = next(c for c in CONTENDERS if c.name == OURS)
    figures = measure(contender, job(folder=str(prepared.folder), records=str(records), method=method), 1)
    assert figures["trained_tokens"] == sum(prepared.lengths) - sum(prompts)
    assert figures["loss"] == pytest.approx(6.2, abs=0.2)  # ln 512 = 6.24
