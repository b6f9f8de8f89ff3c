"""Reward modelling by the command line: from preferences to a folder that others load, and scores of conversations."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from llm_lightning.__main__ import main
from tests.config_files import adamw, config_of, part, saves_every

REWARD = config_of(
    part("RewardModeling", backbone={"path": "network", "dropout": 0.1}, optimizer=adamw(5e-3)),
    part("PreferenceDataModule", path="pairs.jsonl", seq_len=64, batch_size=2, val_share=0.1),
    max_steps=24, val_check_interval=8, accumulate_grad_batches=2, callbacks=[saves_every(3)],
)  # fmt: skip

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}}

# What anybody does who has the folder and transformers, and none of our code.
CLEAN = """
import json, sys, torch
from transformers import AutoTokenizer, AutoModelForSequenceClassification
folder, talks, adapter = sys.argv[1], json.load(open(sys.argv[2])), len(sys.argv) > 3
tokenizer = AutoTokenizer.from_pretrained(folder)
if adapter:
    from peft import AutoPeftModelForSequenceClassification
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
model.eval()
found = []
for side in ("left", "right"):
    batch = tokenizer.apply_chat_template(
        talks, return_tensors="pt", return_dict=True, padding=True, tokenizer_kwargs={"padding_side": side}
    )
    with torch.no_grad():
        found.append(model(**batch).logits[:, 0].tolist())
assert "llm_lightning" not in sys.modules
print(json.dumps({"rewards": found, "normalization": getattr(model.config, "reward_normalization", None)}))
"""


def preferences(count):
    g = random.Random(0)
    for i in range(count):
        words = [g.choice(["1", "2", "3", "plus", "number", "is"]) for _ in range(4)]
        yield {"prompt": f"{g.randint(0, 10**12)}?", "chosen": f"It is {i % 7}.", "rejected": " ".join(words)}


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def pairs(folder, network):
    """A folder with a network, pairs to learn from and conversations to score."""
    (folder / "network").symlink_to(network)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences(80)))
    talks = [{"id": i, "messages": talk(f"What {i}?", f"It is {'plus ' * (i % 5)}{i}.")} for i in range(30)]
    talks.insert(7, {"id": "long", "messages": talk("What?", "plus " * 90)})
    (folder / "talks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talks))
    (folder / "tiny.yaml").write_text(REWARD)
    (folder / "peft.yaml").write_text(yaml.dump({"model": {"init_args": {"peft": LORA}}}))
    return folder


def in_a_clean_process(folder, model, talks, *args):
    (folder / "talks.json").write_text(json.dumps(talks))
    (folder / "clean.py").write_text(CLEAN)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "clean.py", str(model), "talks.json", *args],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reward_model_comes_out_that_transformers_alone_reads(run, pairs):
    code, output = run("fit", "--config", "tiny.yaml")
    assert code == 0, output
    assert "pairs.jsonl: prompt-pair" in output and "accuracy" in output and "calibration" in output
    assert (pairs / "run" / "reliability.png").stat().st_size > 10_000
    model = pairs / "run" / "model" / "last"
    score = ("predict", "--config", "tiny.yaml", "--data.predict_path=talks.jsonl")
    code, output = run(*score, "--resume=false", f"--model.backbone.path={model}")
    assert code == 0, output
    rows = lines(pairs / "run" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [record["id"] for record in lines(pairs / "talks.jsonl")]
    assert rows[7]["reward"] is None and "data.seq_len=64" in rows[7]["error"]
    scored = [row for row in rows if row["reward"] is not None]
    found = in_a_clean_process(pairs, model, [row["messages"] for row in scored])
    for rewards in found["rewards"]:
        assert rewards == pytest.approx([row["reward"] for row in scored], abs=1e-5)
    scale = found["normalization"]
    assert scale["num_answers"] == 16 and scale["std"] > 0
    normalized = [(row["reward"] - scale["mean"]) / scale["std"] for row in scored]
    assert [row["normalized_reward"] for row in scored] == pytest.approx(normalized, abs=1e-4)
    # The same from the checkpoint, and without the pairs.
    assert run(*score)[0] == 0
    assert [row["reward"] for row in lines(pairs / "run" / "predictions.jsonl")] == [row["reward"] for row in rows]


@pytest.mark.slow
def test_an_adapter_is_what_peft_reads_and_can_be_merged(run, pairs):
    code, output = run("fit", "--config", "tiny.yaml", "--config", "peft.yaml")
    assert code == 0, output
    adapter, merged = pairs / "run" / "model" / "last", pairs / "merged"
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    code, output = run("merge", str(adapter), str(merged))
    assert code == 0, output
    talks = [talk("What is 1?", "plus"), talk("What?", "It is 3."), talk("1 plus 2", "3 is the number.")]
    by_peft = in_a_clean_process(pairs, adapter, talks, "adapter")
    by_transformers = in_a_clean_process(pairs, merged, talks)
    assert any(abs(reward) > 1e-3 for reward in by_peft["rewards"][0])
    for rewards in (*by_peft["rewards"], *by_transformers["rewards"]):
        assert rewards == pytest.approx(by_peft["rewards"][0], abs=1e-5)
    assert by_transformers["normalization"] == json.loads((adapter / "reward_normalization.json").read_text())


def test_training_goes_on_from_an_adapter_of_a_language_model(here, pairs):
    """What fine-tuning by LoRA left is merged, and gets a head."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(pairs / "network")
    get_peft_model(network, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")).save_pretrained("lora")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pairs / "lora" / name).write_text((pairs / "network" / name).read_text())
    args = ["--model.backbone.path=lora", "--trainer.fast_dev_run=2"]
    assert main(["fit", "--config", "tiny.yaml", *args]) == 0


@pytest.mark.parametrize("overlay", [(), ("--config", "peft.yaml")])
@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(command, run, pairs, overlay):
    from tests.end_to_end.test_resume import kill_after_steps, losses, weights

    code, output = run("fit", "--config", "tiny.yaml", *overlay, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert kill_after_steps(command, pairs, 8, *overlay)
    code, output = run("fit", "--config", "tiny.yaml", *overlay)
    assert code == 0 and "Going on from" in output, output
    assert losses(pairs / "run") == losses(pairs / "straight")
    ours, theirs = weights(pairs / "run"), weights(pairs / "straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_scoring_goes_on_where_it_was_killed(command, run, pairs):
    many = [{"id": i, "messages": talk(f"What {i}?", f"It is {i}.")} for i in range(4000)]
    (pairs / "talks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in many))
    score = (
        "predict", "--model=RewardModeling", "--model.backbone.path=network", "--data=PreferenceDataModule",
        "--data.predict_path=talks.jsonl", "--data.seq_len=64", "--data.batch_size=1", "--trainer.default_root_dir=run",
        "--trainer.accelerator=cpu", "--trainer.precision=32-true",
    )  # fmt: skip
    part = pairs / "run" / "predictions.jsonl.part"
    process = command(*score)
    while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 200):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = part.read_bytes()
    part.write_bytes(done[:-9])  # torn in a line
    code, output = run(*score)
    assert code == 0 and "Going on behind" in output, output
    rows = lines(pairs / "run" / "predictions.jsonl")
    assert [row["id"] for row in rows] == list(range(4000)) and not part.exists()


@pytest.fixture
def here(pairs, cache, monkeypatch):
    """In the folder, for the command line in this process."""
    monkeypatch.chdir(pairs)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))


def test_preview(here, capfd):
    assert main(["preview", "--config", "tiny.yaml", "--num_records", "1"]) == 0
    output = capfd.readouterr().out
    assert "⟦It is" in output and "<|im_end|>\n⟧" in output and "pairs       72, 0 of them copies" in output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.objective.label_smoothing=0.5"], ["model.objective.label_smoothing=0.5", "below 0.5"]),
        (["--model.backbone.attention=sdpa"], ["data.share_prompts", "model.backbone.attention"]),
        (["--model.peft=peft.PromptTuningConfig", "--model.peft.num_virtual_tokens=4"], ["data.share_prompts=false"]),
        (["--data.path=texts.jsonl"], ["texts.jsonl", "text", "columns"]),
        (["--data.labels={'0': third}"], ["labels", "third"]),
        (["--data.seq_len=4096"], ["data.seq_len=4096 is longer than the network's 128 positions"]),
    ],
)
def test_mistakes(here, capfd, args, words):
    assert main(["fit", "--config", "tiny.yaml", *args]) == 2
    output = capfd.readouterr().err
    assert "Traceback" not in output and all(word in output for word in words), output


def test_predict_asks_for_conversations(here, capfd):
    assert main(["predict", "--config", "tiny.yaml", "--resume=false"]) == 2
    assert "data.predict_path: name the conversations to score" in capfd.readouterr().err


def test_prompts_before_every_answer_train_where_none_is_shared(here):
    peft = ["--model.peft=peft.PrefixTuningConfig", "--model.peft.num_virtual_tokens=4"]
    args = ["--data.share_prompts=false", "--data.seq_len=120", "--trainer.fast_dev_run=2"]
    assert main(["fit", "--config", "tiny.yaml", *peft, *args]) == 0
