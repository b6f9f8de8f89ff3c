"""Fine-tuning by the command line: from a pretrained folder and any instruction data to a chat model."""

import csv
import json

import pytest
import torch
import yaml

from llm_lightning.__main__ import main
from tests.config_files import adamw, config_of, part, samples_of, saves_every

SFT = config_of(
    part("SupervisedFinetuning", backbone={"path": "network", "dropout": 0.1}, optimizer=adamw(1e-2)),
    part("InstructionDataModule", path="pairs.jsonl", seq_len=64, batch_size=2, val_share=0.1),
    max_steps=24, val_check_interval=8, accumulate_grad_batches=2, callbacks=[saves_every(3), samples_of(8)],
)  # fmt: skip


@pytest.fixture
def chat(folder, network):
    """A folder with a network and pairs to learn."""
    (folder / "network").symlink_to(network)
    pairs = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "sft.yaml").write_text(SFT)
    return folder


def test_a_chat_model_comes_out(run, chat):
    code, output = run("fit", "--config", "sft.yaml")
    assert code == 0, output
    assert "pairs.jsonl: question-answer" in output and "of them in the loss" in output
    folder = chat / "run" / "model" / "last"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>" and "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.eos_token_id in network.generation_config.eos_token_id
    mode = (chat / "sft.yaml").stat().st_mode
    assert {file.stat().st_mode for file in (chat / "run").rglob("*") if file.is_file()} == {mode}, "the umask's"
    samples = (chat / "run" / "samples" / "step-000024.txt").read_text()
    assert "<|im_start|>user" in samples and "plus" in samples

    code, output = run("predict", "--config", "sft.yaml", "--model.backbone.path=run/model/last")
    assert code == 0, output
    lines = [json.loads(line) for line in (chat / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all("What is" in line["prompt"] for line in lines)


TURNS = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|over|>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.mark.slow
@pytest.mark.parametrize("peft", [(), ("--config", "peft/lora")], ids=["full", "lora"])
def test_a_network_learns_the_tokens_of_a_chat_template_that_it_never_saw(run, chat, peft):
    (chat / "turns.jinja").write_text(TURNS)
    settings = "--model.backbone.new_tokens=['<|user|>','<|assistant|>','<|over|>']", "--data.template=turns.jinja"
    code, output = run("fit", "--config", "sft.yaml", *peft, *settings, "--trainer.max_steps=4")
    assert code == 0, output
    from transformers import AutoTokenizer, GenerationConfig

    folder = chat / "run" / "model" / "last"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    over = tokenizer.convert_tokens_to_ids("<|over|>")
    assert tokenizer.eos_token_id == over and over in GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokenizer("<|user|>a").input_ids[0] == tokenizer.convert_tokens_to_ids("<|user|>") > 3
    code, output = run("fit", "--config", "sft.yaml", *peft, *settings, "--trainer.max_steps=6")
    assert code == 0 and "Going on from" in output, output
    code, output = run("predict", "--config", "sft.yaml", "--model.backbone.path=run/model/last", "--resume=false")
    assert code == 0, output


def test_preview_shows_what_is_trained_and_trains_nothing(run, chat):
    code, output = run("preview", "--config", "sft.yaml", "--num_records", "1")
    assert code == 0, output
    assert "<|im_start|>assistant\n⟦It is" in output and "<|im_end|>⟧" in output
    assert "documents   72, 0 of them copies" in output
    assert not (chat / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.template=nothing"], ["data.template: 'nothing' is neither a file nor one of chatml"]),
        (["--data.path=texts.jsonl"], ["texts.jsonl", "text", "columns"]),
        (["--data.turns=some"], ["turns", "some"]),
        (["--data.seq_len=4096"], ["data.seq_len=4096 is longer than the network's 128 positions"]),
        (["--data.vocab_size=300"], ["vocab_size"]),
    ],
)
def test_mistakes(chat, cache, monkeypatch, capfd, args, words):
    monkeypatch.chdir(chat)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    assert main(["fit", "--config", "sft.yaml", *args]) == 2
    output = capfd.readouterr().err
    assert "Traceback" not in output and all(word in output for word in words), output


@pytest.mark.parametrize(
    "overlay",
    [
        pytest.param(None, marks=pytest.mark.slow),
        {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_dropout": 0.1}},
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(command, run, chat, overlay):
    from tests.end_to_end.test_resume import kill_after_steps, losses, weights

    args = ()
    if overlay:
        (chat / "peft.yaml").write_text(yaml.dump({"model": {"init_args": {"peft": overlay}}}))
        args = ("--config", "peft.yaml")
    (chat / "tiny.yaml").write_text(SFT)
    code, output = run("fit", "--config", "tiny.yaml", *args, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert kill_after_steps(command, chat, 8, *args)
    code, output = run("fit", "--config", "tiny.yaml", *args)
    assert code == 0 and "Going on from" in output, output
    assert losses(chat / "run") == losses(chat / "straight")
    ours, theirs = weights(chat / "run"), weights(chat / "straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if overlay:
        assert all("lora" in name for name in ours if name.startswith("model."))
        merged = ("merge", "run/model/last", "merged")
        code, output = run(*merged)
        assert code == 0, output
    judged = [("validate", "--config", "tiny.yaml", *args)]
    judged.append(("validate", "--config", "tiny.yaml", "--resume=false", "--model.backbone.path=run/model/last"))
    for command_line in judged:
        code, output = run(*command_line)
        assert code == 0 and last_val_loss(chat / "run") in output, output


def last_val_loss(root) -> str:
    with (root / "metrics.csv").open() as file:
        return [row["val/loss"][:6] for row in csv.DictReader(file) if row["val/loss"]][-1]
