"""`llm-lightning evaluate` of a reward model: how often it prefers what people preferred."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from llm_lightning.commands.evaluate import run
from llm_lightning.commands.report import run as report
from llm_lightning.evaluation.results import read_evaluation, read_items
from llm_lightning.measuring.answers import key_of
from llm_lightning.measuring.statistics import bootstrap_interval, mcnemar_p, wilson_interval
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.merging.adapter import merge_folder
from llm_lightning.models.tasks import REWARD
from llm_lightning.rollouts.local_engine import LocalEngine
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.evaluation.small_model import save_small_model, write_rows

WORDS = ("red", "blue", "one", "two", "never", "perhaps", "of course", "hello")


def save_reward_model(folder: Path, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    tokenizer = chat_tokenizer("smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.25, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Backbone(config=config).build(tokenizer, REWARD)
    torch.nn.init.normal_(model.score.weight)
    save_model_folder(model, tokenizer, folder)
    return folder


def preferences(count: int) -> list[dict]:
    g = random.Random(0)
    rows = []
    for number in range(count):
        said = [" ".join(g.choices(WORDS, k=g.randint(1, 9))) for _ in range(2)]
        rows.append({"prompt": f"What is number {number}?", "chosen": said[0], "rejected": said[1]})
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("rewards") / "model" / "best")


def evaluated(model: Path, data: Path, *more: str, output: Path):
    code = run([str(model), "--tasks", "local_pairs", "--data", f"local_pairs={data}", "--output", str(output), *more])
    assert code == 0
    evaluation = read_evaluation(output)
    return evaluation, evaluation.tasks["local_pairs"]


def rewards_by_transformers(folder: Path, rows: list[dict], most: int = 256) -> list[tuple[float, float]]:
    """One text at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for row in rows:
        pair = []
        for name in ("chosen", "rejected"):
            talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
            ids = tokenizer.apply_chat_template(talk, return_dict=False)[-most:]
            with torch.no_grad():
                pair.append(network(torch.tensor([ids])).logits.item())
        found.append(tuple(pair))
    return found


def test_accuracy_and_rewards_are_those_of_transformers_alone(model, tmp_path, capsys):
    rows = preferences(40)
    unfit = [
        {"prompt": "Same?", "chosen": "yes", "rejected": "yes"},
        {"prompt": "Empty?", "chosen": "", "rejected": "yes"},
    ]
    rows[7]["prompt"] = "Why? " * 200  # longer than the context
    data = write_rows(tmp_path / "pairs.jsonl", rows[:20] + unfit + rows[20:])
    evaluation, task = evaluated(model, data, "--row_tokens", "700", output=tmp_path / "out")
    expected = rewards_by_transformers(model, rows)
    kept = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert len(kept) == 40
    for row, pair in zip(kept, expected, strict=True):
        assert json.loads(row["answer"]) == pytest.approx(pair, abs=1e-4)
        assert row["value"] == float(pair[0] > pair[1])
    right = sum(chosen > rejected for chosen, rejected in expected)
    assert 8 < right < 32  # what the test is worth
    (score,) = task["scores"]
    assert score["value"] == right / 40
    assert (score["low"], score["high"]) == pytest.approx(wilson_interval(right, 40))
    assert (score["interval"], task["equal_rewards"], task["truncated"]) == ("wilson", 0, 1)
    assert [row["truncated"] for row in kept] == [number == 7 for number in range(40)]
    assert task["first_prompt"].startswith("<|im_start|>")
    assert evaluation.settings["seq_len"] == 256
    printed = capsys.readouterr().out
    assert "1 of two answers that are the same" in printed
    assert "1 with an empty answer" in printed
    assert re.search(r"local_pairs +accuracy", printed)


def test_ties_of_the_data_are_left_out_and_equal_rewards_count_half(model, tmp_path, capsys):
    rows = [
        {"instruction": row["prompt"], "output_1": row["chosen"], "output_2": row["rejected"], "label": label}
        for row, label in zip(preferences(12), (1, 2, "tie") * 4, strict=True)
    ]
    data = write_rows(tmp_path / "labelled.jsonl", rows)
    _, task = evaluated(model, data, output=tmp_path / "out")
    assert task["num_items"] == 8
    assert "4 that are ties" in capsys.readouterr().out
    # Cut to the tokens that both end with, all conversations are the same.
    _, task = evaluated(model, data, "--seq_len", "2", output=tmp_path / "short")
    (score,) = task["scores"]
    assert (score["value"], task["equal_rewards"], task["truncated"]) == (0.5, 8, 8)
    assert (score["low"], score["high"]) == pytest.approx(wilson_interval(4, 8))


def test_pairs_that_share_a_prompt_are_one_cluster(model, tmp_path):
    rows = preferences(30)
    for number, row in enumerate(rows):
        row["prompt"] = f"What is number {number // 5}?"
    _, task = evaluated(model, write_rows(tmp_path / "pairs.jsonl", rows), output=tmp_path / "out")
    (score,) = task["scores"]
    values = [float(chosen > rejected) for chosen, rejected in rewards_by_transformers(model, rows)]
    expected = bootstrap_interval(values, [number // 5 for number in range(30)])
    assert score["interval"] == "cluster bootstrap"
    assert (score["low"], score["high"]) == pytest.approx(expected)
    assert len(set(read_items(tmp_path / "out")["local_pairs", "accuracy", "none"].clusters)) == 6


def test_columns_by_other_names_a_limit_and_the_part_for_testing(model, tmp_path):
    rows = preferences(10)
    renamed = [{"frage": row["prompt"], "gut": row["chosen"], "schlecht": row["rejected"]} for row in rows]
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "test.jsonl", renamed)
    write_rows(folder / "train.jsonl", renamed[:3])
    named = [word for pair in ("prompt=frage", "chosen=gut", "rejected=schlecht") for word in ("--columns", pair)]
    _, task = evaluated(model, folder, *named, output=tmp_path / "out")
    assert task["num_items"] == 10
    _, some = evaluated(model, folder, *named, "--limit", "0.25", output=tmp_path / "some")
    assert some["num_items"] == 3
    # Whatever the columns are called, the items are the same.
    evaluated(model, write_rows(tmp_path / "pairs.jsonl", rows), output=tmp_path / "usual")
    key = ("local_pairs", "accuracy", "none")
    assert (read_items(tmp_path / "usual")[key].hashes == read_items(tmp_path / "out")[key].hashes).all()


def test_an_adapter_is_read_with_its_network_and_its_head(model, tmp_path):
    torch.manual_seed(4)
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_CLS")
    adapter = Adapter(Backbone(path=str(model)).build(tokenizer, REWARD), peft, REWARD)
    save_model_folder(adapter.model, tokenizer, tmp_path / "adapter", adapter=adapter)
    merge_folder(tmp_path / "adapter", tmp_path / "merged")
    rows = preferences(6)
    evaluated(tmp_path / "adapter", write_rows(tmp_path / "pairs.jsonl", rows), output=tmp_path / "out")
    kept = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    expected = rewards_by_transformers(tmp_path / "merged", rows)
    for row, pair, base in zip(kept, expected, rewards_by_transformers(model, rows), strict=True):
        assert json.loads(row["answer"]) == pytest.approx(pair, abs=1e-4)
        assert pair != pytest.approx(base, abs=1e-2)


def test_a_report_tests_two_reward_models_on_the_same_pairs(model, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", preferences(60))
    other = save_reward_model(tmp_path / "other", seed=5)
    values = []
    for name, folder in (("one", model), ("two", other)):
        evaluated(folder, data, output=tmp_path / name)
        values.append(read_items(tmp_path / name)["local_pairs", "accuracy", "none"].values)
    only = [int(((values[i] == 1) & (values[1 - i] == 0)).sum()) for i in (0, 1)]
    assert min(only) > 3
    page = tmp_path / "report.html"
    assert report([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(page)]) == 0
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    p = mcnemar_p(*only)
    assert f"{p:.3f}" in text
    assert re.search(r"local_pairs\s+accuracy", text)


def test_what_an_earlier_attempt_knows_is_not_asked_again(model, tmp_path):
    rows = preferences(4)
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(model)
    talks = [
        [{"role": "user", "content": rows[0]["prompt"]}, {"role": "assistant", "content": rows[0][name]}]
        for name in ("chosen", "rejected")
    ]
    ids = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in talks]
    out = tmp_path / "out"
    out.mkdir()
    planted = [key_of("rewards", LocalEngine(str(model)).model, *ids), [7.0, 6.0]]
    (out / "answers-0.jsonl").write_text(json.dumps(planted) + '\n["torn')
    evaluated(model, data, output=out)
    kept = [json.loads(row["answer"]) for row in parquet.read_table(out / "items.parquet").to_pylist()]
    assert kept[0] == [7.0, 6.0]
    for found, pair in zip(kept[1:], rewards_by_transformers(model, rows)[1:], strict=True):
        assert found == pytest.approx(pair, abs=1e-4)
    assert not list(out.glob("answers-*"))


def test_pairs_that_stand_in_the_training_data_are_left_out(model, tmp_path):
    rows = preferences(20)
    for number in range(10):
        rows[number]["prompt"] = f"Say what the longest of the {number} old songs says of the red and the blue sea."
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    trained = write_rows(tmp_path / "trained.jsonl", [{"text": rows[n]["prompt"]} for n in (2, 5)])
    _, task = evaluated(model, data, "--contamination", str(trained), output=tmp_path / "out")
    kept = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [row["item"] for row in kept if row["contaminated"]] == [2, 5]
    assert (task["contaminated"], task["too_short"]) == (2, sum(row["contaminated"] is None for row in kept))
    values = [row["value"] for row in kept if not row["contaminated"]]
    (score,) = task["scores"]
    assert score["clean"]["value"] == pytest.approx(sum(values) / 18)
    assert (score["clean"]["low"], score["clean"]["high"]) == pytest.approx(wilson_interval(sum(values), 18))


@pytest.mark.slow
def test_two_ranks_split_the_pairs(model, tmp_path):
    rows = preferences(12)
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    asked = ["--tasks", "local_pairs", "--data", f"local_pairs={data}", "--output", str(tmp_path / "out")]
    command = [*launched, "-m", "llm_lightning", "evaluate", str(model), *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("95 % interval") == 1
    kept = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    for row, pair in zip(kept, rewards_by_transformers(model, rows), strict=True):
        assert json.loads(row["answer"]) == pytest.approx(pair, abs=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--tasks", "local_text"], "--tasks local_text: MODEL .* is a reward model, which writes nothing. Ask it"),
        (["--tasks", "local_pairs,local_text"], "is a reward model"),
        (["--num_fewshot", "2"], "--num_fewshot is of models that write"),
        (["--chat_template"], "--chat_template is of models that write"),
        (["--data", "local_text=x"], "--data local_text: this task is not among those that are asked"),
        (["--data", "local_pairs=nowhere.jsonl"], "--data local_pairs=nowhere.jsonl: path: 'nowhere.jsonl' does not"),
        (["--data", "local_pairs=same.jsonl"], r"no pair is left to judge \(1 of two answers that are the same\)"),
        (["--data", "local_pairs=singles.jsonl"], "holds single answers .* judging a reward model needs pairs"),
        (["--data", "local_pairs=torn.jsonl"], "torn.jsonl:2"),
        (["--data", "local_pairs=texts.jsonl"], "which make none of the known shapes"),
        (["--columns", "prompt=nothing"], "has no column 'nothing'"),
        (["--seq_len", "999"], "seq_len=999: the model's context has 256 tokens"),
    ],
)
def test_mistakes_in_words(model, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", preferences(2))
    write_rows(tmp_path / "same.jsonl", [{"prompt": "Same?", "chosen": "yes", "rejected": "yes"}])
    (tmp_path / "torn.jsonl").write_text(json.dumps(preferences(1)[0]) + '\n{"prompt": \n')
    write_rows(tmp_path / "texts.jsonl", [{"text": "Hello."}])
    write_rows(tmp_path / "singles.jsonl", [{"prompt": "Same?", "completion": "yes", "label": True}])
    given = [str(model), "--tasks", "local_pairs", "--data", "local_pairs=pairs.jsonl", "--output", "out"]
    assert run([*given, *change]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_language_model_is_not_asked_pairs(tmp_path, capsys):
    folder = save_small_model(tmp_path / "model")
    assert run([str(folder), "--tasks", "local_pairs", "--data", "local_pairs=x.jsonl"]) == 2
    assert "asks reward models which of two responses is better" in capsys.readouterr().err
