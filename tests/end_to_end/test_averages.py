"""Averages of weights from the command line: their overlays, adapters and PPO, and kills on the way."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.config_files import adamw, config_of, part
from tests.end_to_end.test_resume import losses

EMA = "--config=callbacks/ema"
KILL = ("--trainer.callbacks+={class_path: tests.signals.SignalAt, init_args: "
        "{name: SIGKILL, step: %s, in_validation: %s}}")  # fmt: skip


def weights(run, name="average"):
    (file,) = (run / "model" / name).glob("*.safetensors")
    return load_file(file)


def assert_killed_is_straight(run, folder, fit, kills):
    code, output = run(*fit, "--trainer.default_root_dir=straight")
    assert code == 0, output
    for kill in kills:
        code, output = run(*fit, KILL % kill)
        assert code == -9, output
    code, output = run(*fit)
    assert code == 0 and "Going on from" in output, output
    for name in ("average", "last"):
        ours, theirs = (weights(folder / root, name) for root in ("run", "straight"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    average, last = (weights(folder / "run", name) for name in ("average", "last"))
    assert average.keys() == last.keys() and any(not torch.equal(average[key], last[key]) for key in last)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", [EMA, "--config=callbacks/swa"], ids=["ema", "swa"])
def test_killed_twice_it_ends_with_the_same_average(run, folder, overlay):
    fit = ("fit", "--config=tiny.yaml", overlay)
    fit += ("--trainer.callbacks.every_n_steps=2",) if "swa" in overlay else ()
    assert_killed_is_straight(run, folder, fit, [(8, "true"), (20, "false")])
    assert losses(folder / "run") == losses(folder / "straight")
    code, output = run(*fit)
    assert code == 0 and "finished" in output, output
    code, output = run("validate", *fit[1:])
    assert code == 0 and losses(folder / "run")["24"][1][:7] in output, output
    AutoModelForCausalLM.from_pretrained(folder / "run" / "model" / "average")


@pytest.mark.slow
def test_an_adapter_is_averaged_alone(run, folder, network):
    pairs = [{"prompt": f"What is {i} plus {i}?", "completion": f"A number, {i}."} for i in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = part(
        "SupervisedFinetuning", backbone={"path": str(network)}, optimizer=adamw(5e-3),
        peft=part("peft.LoraConfig", r=4, target_modules="all-linear"),
    )  # fmt: skip
    data = part("InstructionDataModule", path="pairs.jsonl", seq_len=64, batch_size=4, val_share=0.1)
    (folder / "sft.yaml").write_text(config_of(model, data, max_steps=8, val_check_interval=4))
    fit = ("fit", "--config=sft.yaml", EMA, "--trainer.callbacks+=RunCheckpoint", "--trainer.callbacks.every_n_steps=2")
    assert_killed_is_straight(run, folder, fit, [(4, "true")])
    saved = torch.load(folder / "run" / "checkpoints" / "step=8.ckpt", weights_only=True)["average"]
    assert saved and all(".lora_" in name for name in saved)
    assert (folder / "run" / "model" / "average" / "adapter_config.json").is_file()
    code, output = run("merge", "run/model/average", "merged")
    assert code == 0, output


@pytest.mark.slow
def test_a_policy_is_averaged_over_rollouts(run, ppo_folder):
    fit = ("fit", "--config=ppo.yaml", EMA, "--trainer.max_steps=4")
    assert_killed_is_straight(run, ppo_folder, fit, [(3, "true")])
    state = torch.load(ppo_folder / "run" / "checkpoints" / "step=4.ckpt", weights_only=True)
    assert state["callbacks"]["EMA"] == {"num_averaged": 4, "step": 4}


def test_deepspeed_is_refused(run, folder):
    pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    code, output = run("fit", "--config=tiny.yaml", EMA, "--config=trainer/deepspeed_zero2")
    assert code == 2 and "EMA cannot find single weights under DeepSpeed" in output, output
