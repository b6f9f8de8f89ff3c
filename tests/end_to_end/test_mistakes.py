"""Each mistake of a user ends in one message that names it, with exit code 2 and no traceback."""

import json

import pytest

from llm_lightning.__main__ import main

CALLBACK = "--trainer.callbacks+=[{class_path: %s}]"
CONDITION = CALLBACK % "StopWhen, init_args: {conditions: [%s]}"
LORA = "{class_path: peft.LoraConfig, init_args: {layers_to_transform: 3, target_modules: abc}}"


@pytest.fixture
def inputs(folder, cache, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    (folder / "empty.txt").touch()
    (folder / "columns.jsonl").write_text(json.dumps({"title": "a", "body": "b"}) + "\n")
    lines = (folder / "texts.jsonl").read_text().splitlines(keepends=True)
    (folder / "broken.jsonl").write_text("".join([*lines[:30], '{"text": "no end\n', *lines[30:]]))
    (folder / "latin.txt").write_bytes("Año, señor, corazón. ".encode("latin-1") * 20)
    (folder / "bad.yaml").write_text("model: [\n")
    return folder


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.path=nowhere"], ["data.path", "nowhere", "does not exist"]),
        (["--data.path=empty.txt"], ["data.path", "empty.txt", "is empty"]),
        (["--data.path=columns.jsonl"], ["data.text_column", "title, body"]),
        (["--data.path=broken.jsonl"], ["broken.jsonl:31", "on_bad_record=skip"]),
        (["--data.path=latin.txt"], ["latin.txt:1", "UTF-8", "iconv"]),
        (["--data.seq_len=65"], ["data.seq_len=65", "64 positions", "max_position_embeddings"]),
        (["--data.sequence_length=3"], ["TextDataModule", "no setting 'sequence_length'"]),
        (["--trainer.max_step=3"], ["no setting --trainer.max_step"]),
        (["--model.backbone.config.hiden_size=3"], ["model.backbone.config", "LlamaConfig", "hiden_size"]),
        (["--model.backbone.path=./x"], ["model.backbone", "both are given"]),
        (["--tokenizer=a", "--data.tokenizer=b"], ["--tokenizer=a", "--data.tokenizer=b", "exclude"]),
        (["--tokenizer=a"], ["tokenizer", "vocab_size"]),
        (["--trainer.max_steps=abc"], ["trainer.max_steps", "int", "abc"]),
        (["--model.optimizer.lr=abc"], ["model.optimizer.lr", "float"]),
        (["--model=Foo"], ["model", "no class Foo"]),
        (["--trainer.strategy=foo"], ["strategy='foo'"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--config=bad.yaml"], ["config"]),
        (["--ckpt_path=none.ckpt"], ["ckpt_path=none.ckpt"]),
        (["--model.schedule.min_ratio=3"], ["model.schedule.min_ratio=3"]),
        (["--model.schedule.unit=tokens"], ["model.schedule.total"]),
        ([f"--model.peft={LORA}"], ["`layers_to_transform` cannot be used when `target_modules` is a str"]),
        ([CALLBACK % "RunCheckpoint, init_args: {keep: 0}"], ["RunCheckpoint.keep: 0 is below 1"]),
        ([CALLBACK % "GracefulStop, init_args: {signals: [SIGX]}"], ["GracefulStop.signals: 'SIGX'", "SIGTERM"]),
        ([CALLBACK % "StopWhen, init_args: {patience: 3}"], ["StopWhen", "no setting 'patience'"]),
        ([CONDITION % "Target"], ["conditions (Target)", "a setting is missing: value"]),
        ([CONDITION % "{class_path: Target, init_args: {value: .nan}}"], ["Target.value: nan can never"]),
        ([CONDITION % "{class_path: Target, init_args: {value: 1, mode: up}}"], ["mode (Target)", "'min', 'max'"]),
        ([CONDITION % "Foo"], ["conditions", "no class Foo"]),
        ([CALLBACK % "StopWhen}, {class_path: StopWhen"], ["more than one", "StopWhen"]),
    ],
)
def test_fit(inputs, capfd, args, words):
    code = main(["fit", "--config", "tiny.yaml", *args])
    output = capfd.readouterr().err
    message = output[output.index("llm-lightning: error: ") :]
    assert code == 2 and "Traceback" not in output
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 4
    assert not (inputs / "run" / "checkpoints").exists()


def test_no_such_command(capfd):
    assert main(["train"]) == 2
    assert "fit, validate, test, predict" in capfd.readouterr().err


def test_no_data(inputs, capfd):
    assert main(["fit", "--model=CausalPretraining", "--model.backbone.path=x"]) == 2
    assert "--data" in capfd.readouterr().err


def test_a_misspelt_environment_variable(inputs, capfd, monkeypatch):
    monkeypatch.setenv("LLM_LIGHTNING__TRAINER__MAX_STEP", "3")
    assert main(["fit", "--config", "tiny.yaml"]) == 2
    assert "--trainer.max_step" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_judging_a_network_that_was_never_trained(inputs, capfd, command):
    assert main([command, "--config", "tiny.yaml"]) == 2
    assert "no trained weights" in capfd.readouterr().err


def test_debug_shows_the_traceback(inputs, capfd):
    assert main(["fit", "--config", "tiny.yaml", "--debug", "--data.path=nowhere"]) == 2
    assert "Traceback" in capfd.readouterr().err
