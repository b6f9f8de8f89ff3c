"""Whole PPO runs by the command line: what they leave behind, kills, and mistakes."""

import json
import re
import signal

import pytest
import torch

from tests.ppo_runs import metrics

FIT = ("fit", "--config", "ppo.yaml")

KILLER = """
import os, signal
import torch
from lightning.pytorch import Callback
from llm_lightning.rollouts.slots import ROLLOUT_ATTENTION


class Killer(Callback):
    '''SIGKILLs its own process in the middle of a phase of a step.'''

    def __init__(self, phase: str, step: int):
        self.phase, self.step, self.calls = phase, step, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and not self.calls:
            pl_module.model.get_decoder().register_forward_pre_hook(lambda *_: self.count(pl_module.model))

    def count(self, model):
        in_rollout = model.config._attn_implementation == ROLLOUT_ATTENTION
        if in_rollout if self.phase == "rollout" else torch.is_grad_enabled():
            self.calls += 1
            if self.calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def straight(run, ppo_folder):
    code, output = run(*FIT, "--trainer.default_root_dir=straight")
    assert code == 0, output
    for line in (
        r"train reward  [\d.]+\n",
        r"  val reward  [\d.]+ \(best, step [36]\), [\d.]+ \(last\)\n",
        r"     rewards  vowels [\d.]+, length [\d.]+, held_out [\d.]+\n",
        r" KL  [\d.e-]+ nats a completion\n",
    ):
        assert re.search(line, output), output
    return ppo_folder / "straight"


def test_a_run_its_files_and_kills_in_both_phases(run, straight, ppo_folder):
    from transformers import AutoModelForCausalLM

    logged = metrics(straight)
    assert list(logged) == [str(step) for step in range(1, 7)]
    assert {
        "reward/vowels",
        "reward/length",
        "reward/length/std",
        "reward/held_out",
        "train/kl",
        "train/entropy",
        "train/clip_share",
        "train/explained_variance",
        "rollout/completion_length",
        "rollout/eos_rate",
        "train/num_updates",
    } <= set(logged["6"])
    AutoModelForCausalLM.from_pretrained(straight / "model" / "best")
    rows = [json.loads(line) for line in (straight / "samples" / "rollouts-000006.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"prompt", "continuation", "rewards"}
    (ppo_folder / "killer.py").write_text(KILLER)
    for phase in ("rollout", "update"):
        root = f"--trainer.default_root_dir={phase}"
        killer = f'{{"class_path": "killer.Killer", "init_args": {{"phase": "{phase}", "step": 3}}}}'
        code, output = run(*FIT, root, "--trainer.callbacks+", killer)
        assert code == -signal.SIGKILL, output
        code, output = run(*FIT, root)
        assert code == 0 and "step=2.ckpt" in output, output
        assert metrics(ppo_folder / phase) == logged
        ours, theirs = (
            torch.load(ppo_folder / name / "checkpoints" / "step=6.ckpt", weights_only=True)["state_dict"]
            for name in (phase, "straight")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


TIMER = """
import json, os, signal, threading
from lightning.pytorch import Callback


class Timer(Callback):
    '''Writes down what each step is asked, and SIGKILLs its own process some time after a step began.'''

    def __init__(self, step: int = 99, seconds: float = 0.0):
        self.step, self.seconds = step, seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with open(os.path.join(trainer.default_root_dir, "asked.jsonl"), "a") as file:
            file.write(json.dumps([trainer.global_step, batch["prompts"]]) + "\\n")
        if trainer.global_step == self.step:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
"""


@pytest.mark.slow
def test_five_kills_while_the_next_rollout_is_written_lose_and_repeat_no_prompt(run, ppo_folder):
    (ppo_folder / "timer.py").write_text(TIMER)
    fit = (*FIT, "--model.rollout.staleness=1", "--trainer.callbacks+")
    for root, *staleness in (("whole",), ("on_policy", "--model.rollout.staleness=0")):
        code, output = run(*fit, "timer.Timer", f"--trainer.default_root_dir={root}", *staleness)
        assert code == 0, output
    for step, seconds in ((1, 0.0), (2, 0.05), (3, 0.1), (4, 0.02), (5, 0.2)):
        killer = json.dumps({"class_path": "timer.Timer", "init_args": {"step": step, "seconds": seconds}})
        code, output = run(*fit, killer, "--trainer.default_root_dir=killed")
        assert code == -signal.SIGKILL, output
    code, output = run(*fit, "timer.Timer", "--trainer.default_root_dir=killed")
    assert code == 0, output
    assert metrics(ppo_folder / "killed") == metrics(ppo_folder / "whole")
    asked, whole, on_policy = (
        dict(json.loads(line) for line in (ppo_folder / name / "asked.jsonl").read_text().splitlines())
        for name in ("killed", "whole", "on_policy")
    )
    assert asked == whole == on_policy and len(asked) == 6
    assert metrics(ppo_folder / "on_policy") != metrics(ppo_folder / "whole")
    ours, theirs = (
        torch.load(ppo_folder / name / "checkpoints" / "step=6.ckpt", weights_only=True)["state_dict"]
        for name in ("killed", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_predict_completes_held_out_prompts(run, straight, ppo_folder):
    code, output = run("predict", "--config", "ppo.yaml", "--trainer.default_root_dir=straight")
    assert code == 0, output
    rows = [json.loads(line) for line in (straight / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    parts = {f"length/{part}" for part in ("mean", "std", "min")}
    assert rows[0]["rewards"].keys() == {"vowels", "length", "held_out"} | parts


MISTAKES = [
    (("--model.rewards={}",), "model.rewards: there is no reward to train on"),
    (("--model.rewards.vowels.weight=0", "--model.rewards.length.weight=0"), "there is no reward to train on"),
    (("--model.advantages.kind=grpo", "--model.rollout.num_samples=1"), "num_samples=1 must be at least 2"),
    (("--model.update.num_minibatches=3",), "model.update.num_minibatches=3 does not divide the 8 completions"),
    (("--model.rollout.sampling.max_new_tokens=500",), "are more than the network's 128 positions"),
    (("--model.rollout.sampling.temperature=0",), "model.rollout.sampling.temperature=0"),
    (("--model.kl.coef=-1",), "model.kl.coef=-1.0 must not be negative"),
    (("--model.kl.place=loss",), "model.kl.place=loss with model.kl.estimator=k1"),
    (("--model.critic.path=x",), "needs model.critic.kind=network"),
    (("--model.guards.held_out=vowels",), "must name a reward of weight 0 (there are: held_out)"),
    (("--data.max_prompt_tokens=2",), "max_prompt_tokens: all 60 prompts"),
    (("--trainer.accumulate_grad_batches=2",), "accumulation is not supported for manual optimization"),
    (("--model.peft=peft.PromptTuningConfig", "--model.peft.num_virtual_tokens=4"), "not virtual tokens"),
    (("--model.rewards.vowels.function=llm_lightning.rewards.RewardModel",
      "--model.rewards.vowels.function.init_args.path=nowhere"), "RewardModel.path='nowhere' cannot be read"),
    (("--model.rewards.vowels.function=llm_lightning.rewards.RewardModel",
      "--model.rewards.vowels.function.init_args.path=nowhere", "--model.rewards.vowels.keep_special_tokens=true"),
     "model.rewards.vowels.keep_special_tokens: a RewardModel writes texts down by its own template"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_a_mistake_is_one_message(run, ppo_folder, args, message):
    code, output = run(*FIT, *args)
    assert code == 2, output
    assert message in output.splitlines()[-1] or message in output, output
    assert "Traceback" not in output


BROKEN = {
    "raises": ("return [len(t) / k for t, k in zip(completions, columns['missing'])]", "Reward 'vowels' raised KeyError: 'missing' for the completion"),  # noqa: E501
    "nan": ("return [float('nan')] * len(completions)", "Reward 'vowels' returned nan for the completion"),
    "count": ("return [1.0]", "Reward 'vowels' returned 1 numbers for 8 completions"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reward_is_one_message(run, ppo_folder, name):
    body, message = BROKEN[name]
    text = f"class Vowels:\n    def __call__(self, prompts, completions, columns):\n        {body}\n"
    text += "def digits(prompts, completions, columns):\n    return [0.0] * len(completions)\n"
    (ppo_folder / "my_rewards.py").write_text(text)
    code, output = run(*FIT, "--trainer.num_sanity_val_steps=0")
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output


def test_a_record_without_an_answer_is_named_before_any_network_is_built(run, ppo_folder):
    final = ("--model.rewards.vowels.function=llm_lightning.rewards.FinalAnswer",)
    with (ppo_folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "How many?", "answer": "several"}\n')
    code, output = run(*FIT, *final)
    assert code == 2
    assert "prompts.jsonl:61: FinalAnswer: column 'answer' holds no number" in output
    assert "Traceback" not in output and not (ppo_folder / "runs/ppo/checkpoints").exists()
    code, output = run(*FIT, *final, "--model.rewards.vowels.function.init_args.column=solution")
    assert code == 2
    assert "prompts.jsonl:1: FinalAnswer.column='solution': the record has the columns" in output


def test_an_empty_prompt_is_named(run, ppo_folder):
    with (ppo_folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "", "answer": 1}\n')
    code, output = run(*FIT)
    assert code == 2
    assert "prompts.jsonl:61: no prompt" in output
