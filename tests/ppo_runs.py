"""The real command line on a tiny policy, for tests of whole PPO runs."""

import csv
import json

import pytest

from tests.config_files import adamw, config_of, part, saves_every


def config(network):
    length, longer = (part("llm_lightning.rewards.Length", target=t, unit="characters") for t in (8, 12))
    lengths = part("llm_lightning.rewards.RewardEnsemble", members=[length, longer], k=0.5)
    model = part(
        "PPO",
        backbone={"path": str(network)},
        rewards={
            "vowels": {"function": {"class_path": "my_rewards.Vowels"}},
            "length": {"function": lengths, "weight": 0.5},
            "held_out": {"function": "my_rewards.digits", "weight": 0},
        },
        optimizer=adamw(3e-3, eps=1e-5),
        rollout={"sampling": {"max_new_tokens": 8}, "num_samples": 2, "missing_eos_penalty": 0.1},
        advantages={"scale_rewards": True},
        update={"epochs": 2, "num_minibatches": 2},
        kl={"coef": 0.05, "target": 1.0, "horizon": 100},
    )
    data = part("PromptDataModule", path="prompts.jsonl", batch_size=4, max_prompt_tokens=32, val_share=0.1)
    return config_of(model, data, max_steps=6, val_check_interval=3, callbacks=[saves_every(2)])


REWARDS = """
class Vowels:
    def __call__(self, prompts, completions, columns):
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


def digits(prompts, completions, columns):
    return [float(any(c.isdigit() for c in text)) for text in completions]
"""

TIMES = "throughput/"


@pytest.fixture
def ppo_folder(folder, network):
    (folder / "ppo.yaml").write_text(config(network))
    (folder / "my_rewards.py").write_text(REWARDS)
    records = [{"prompt": f"What is {i} plus {i * i}?", "answer": i + i * i} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def metrics(folder):
    """By step what was logged, but for times."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{name: value for name, value in row.items() if value and not name.startswith(TIMES)} for row in rows]
    return {row["step"]: row for row in kept if "train/reward" in row}
