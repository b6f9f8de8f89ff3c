"""Secrets in every form are given to each command, and looked for in every byte that it prints or leaves."""

import json
import shutil
import subprocess
import sys

import pytest

from llm_lightning.__main__ import main
from llm_lightning_safety import redaction
from tests.chat_server import ChatServer, send_json
from tests.config_files import config_of, part
from tests.end_to_end.test_secrets import assert_nowhere
from tests.end_to_end.test_synthetic import CONFIG, TEMPLATE
from tests.secret_forms import FORMS, LOOKS, S

# One secret for each form, since one that was seen once is known wherever it is repeated.
SECRETS = [f"S3cr3t-{number:02d}-Value.9" for number in range(len(FORMS))]
TEXTS = [form.replace(S, secret) for form, secret in zip(FORMS, SECRETS, strict=True)]
ALL = [*SECRETS, *LOOKS]
NOTES = "\n\n".join([*TEXTS, *LOOKS])
LORA = "{class_path: peft.LoraConfig, init_args: {r: 2, target_modules: [q_proj, v_proj]}}"
TRAIN = (
    "--config=sft.yaml", "--config=logger/wandb", f"--trainer.logger.init_args.notes={NOTES}",
    f"--trainer.logger.init_args.tags=[{LOOKS[0]}]", f"--trainer.logger.init_args.group={TEXTS[11]}",
)  # fmt: skip


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())


@pytest.fixture
def chat(folder, network, monkeypatch):
    """A chat model, conversations that spell secrets themselves, and a home of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    shutil.copytree(network, folder / "network")
    shutil.copy(TEMPLATE, folder / "network" / "chat_template.jinja")
    pairs = [{"question": f"What is password: Data-{i}-9?", "answer": f"It is {2 * i}."} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "synthetic.yaml").write_text(CONFIG)
    (folder / "sft.yaml").write_text(SFT)
    return folder


SFT = config_of(
    part("SupervisedFinetuning", backbone={"path": "network"}, generation={"max_new_tokens": 4}),
    part("InstructionDataModule", path="pairs.jsonl", seq_len=128, batch_size=2, val_share=0.1),
    max_steps=2, val_check_interval=2, limit_predict_batches=2,
)  # fmt: skip


@pytest.mark.slow  # each command is a process of its own: W&B writes its files as it ends
def test_a_run_with_wandb_and_what_is_made_of_it(chat, fresh_run):
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": LOOKS[3], "HF_TOKEN": LOOKS[0], "MY_PASSWORD": "Key-In-The-Env-1"}
    args = (*TRAIN, "--model.peft", LORA)
    for command in ("fit", "test", "predict"):
        code, output = fresh_run(command, *args, env=env)
        assert code == 0, output
        assert_nowhere(chat, output, [*ALL, "Key-In-The-Env-1"])
    assert len(list((chat / "run" / "wandb").glob("offline-run-*/*.wandb"))) >= 2
    settings = (chat / "run" / "config.yaml").read_text()
    assert "***" in settings and "max_steps: 2" in settings
    # What a user trains on is no setting: it comes out as it went in.
    predictions = [json.loads(line) for line in (chat / "run" / "predictions.jsonl").read_text().splitlines()]
    assert predictions and all("password: Data-" in json.dumps(each) for each in predictions)
    code, output = fresh_run("merge", "run/model/last", "merged", env=env)
    assert code == 0 and (chat / "merged" / "model.safetensors").exists(), output
    assert_nowhere(chat, output, [*ALL, "Key-In-The-Env-1"])


@pytest.mark.slow  # five processes, four of which train
def test_an_ablation(chat, fresh_run):
    args = ("--config=synthetic.yaml", *TRAIN[1:], "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    args += ("--data.generators.again.init_args.count=8", "--seeds=2")
    code, output = fresh_run("ablate", *args, env={"WANDB_MODE": "offline", "HF_TOKEN": LOOKS[0]})
    assert code == 0 and "mean difference" in output, output
    assert len(list((chat / "run" / "ablation").glob("*/config.yaml"))) == 4
    assert_nowhere(chat, output, ALL)


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_settings_that_are_refused(chat, capfd, command):
    for text in ([NOTES], [f"--data.path={NOTES}", "--debug"], [f"--nothing={each}" for each in (*TEXTS, *LOOKS)]):
        assert main([command, "--config=sft.yaml", *text]) == 2
        output = "".join(capfd.readouterr())
        assert "llm-lightning: error" in output
        assert_nowhere(chat, output, ALL)


@pytest.mark.parametrize(
    "args",
    [
        ("configs", "{}"), ("configs", "--copy=out", "{}"), ("configs", "--nothing={}"),
        ("merge", "{}", "out"), ("merge", "{}"), ("workspace", "{}"), ("workspace", "sft", "--nothing={}"),
        ("workspace", "sft", "--entity", "{}", "more {}"), ("ablate", "--seeds={}"),
        ("compress", "--compress.prunings={}"), ("compress", "--config={}"), ("compress", "--compress.{}"),
        ("slurm", "{}", "--time=60"),
        ("slurm", "fit", "--config=tiny.yaml", "--time={}"), ("slurm", "fit", "--config={}", "--time=60"),
        ("slurm", "fit", "--config=tiny.yaml", "--time=60", "--dry-run", "--setup", "{}"),
        ("slurm", "fit", "--config=tiny.yaml", "--time=60", "--dry-run", "--sbatch=--comment={}"),
        ("slurm", "fit", "--config=tiny.yaml", "--time=60", "--dry-run", "--sweep=data.path=a,{}"),
        ("slurm", "chain", "{}", "--time=60", "--dry-run"), ("{}",),
    ],
)  # fmt: skip
def test_a_mistake_of_a_command_with_flags_of_its_own(chat, capfd, args):
    for text in (*TEXTS, *LOOKS):
        assert main([arg.replace("{}", text) for arg in args]) == 2
        output = "".join(capfd.readouterr())
        assert "llm-lightning" in output and "usage:" not in output
        assert_nowhere(chat, output, ALL)


def test_a_script_for_slurm_has_none_of_its_yaml_and_its_environment(chat, capfd, monkeypatch):
    monkeypatch.setenv("LLM_LIGHTNING__TRAINER__LOGGER__INIT_ARGS__GROUP", TEXTS[11])
    monkeypatch.setenv("HF_TOKEN", LOOKS[0])
    logger = {"class_path": "llm_lightning.loggers.WandbRun", "init_args": {"notes": NOTES}}
    (chat / "secret.yaml").write_text(json.dumps({"trainer": {"logger": logger}}))
    args = ("--config=tiny.yaml", "--config=secret.yaml", "--sweep=model.optimizer.lr=1e-3,3e-3", "--time=60")
    assert main(["slurm", "fit", *args, "--setup=module load cuda", "--dry-run"]) == 0
    output = "".join(capfd.readouterr())
    assert "#SBATCH --array=0-1" in output and "--config=secret.yaml" in output
    assert_nowhere(chat, output, ALL, but=("secret.yaml",))


def test_copied_configurations_hold_what_the_package_holds(chat, capfd):
    assert main(["configs", "--copy=out"]) == 0
    assert_nowhere(chat, "".join(capfd.readouterr()), ALL)
    assert "***" not in (chat / "out" / "sft.yaml").read_text()


@pytest.mark.slow  # W&B asks its server again for half a minute
def test_a_server_of_wandb_that_repeats_the_key(chat, fresh_run):
    pytest.importorskip("wandb_workspaces")
    with ChatServer().running() as server:
        said = {"errors": [{"message": f"no such key: {LOOKS[3]}, {TEXTS[0]}"}]}
        server.fault = lambda body, attempt: lambda handler: send_json(handler, json.dumps(said).encode(), 400)
        address = server.url.removesuffix("/v1")
        env = {"WANDB_API_KEY": LOOKS[3], "WANDB_BASE_URL": address, "WANDB_MODE": "online"}
        code, output = fresh_run("workspace", "sft", "--entity=me", "--project=them", "--debug", env=env)
    assert code == 2 and "llm-lightning: error" in output and server.calls, output
    assert_nowhere(chat, output, [LOOKS[3], SECRETS[0]])


OUTPUT = """
import logging, sys, threading, warnings
from llm_lightning.__main__ import main
main(["configs"])
secret = sys.argv[1]
warnings.warn(secret)
logging.error("%s", secret)
def fail():
    raise ValueError(secret)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError:
    logging.exception("it failed")
fail()
"""


def test_warnings_log_lines_and_tracebacks_of_all_threads(chat):
    done = subprocess.run([sys.executable, "-c", OUTPUT, NOTES], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("ValueError") == 3 and "Warning: " in done.stderr, done.stderr
    assert_nowhere(chat, done.stdout + done.stderr, ALL)
