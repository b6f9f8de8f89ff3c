"""The real command line on a tiny policy, for tests of whole PPO runs."""

import csv
import json

import pytest

CONFIG = """
model:
  class_path: PPO
  init_args:
    backbone: {path: NETWORK}
    rewards:
      vowels: {function: {class_path: my_rewards.Vowels}}
      length:
        function: {class_path: llm_lightning.rewards.Length, init_args: {target: 8, unit: characters}}
        weight: 0.5
      held_out: {function: my_rewards.digits, weight: 0}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 3.0e-3, eps: 1.0e-5}}
    rollout: {sampling: {max_new_tokens: 8}, num_samples: 2, missing_eos_penalty: 0.1}
    advantages: {scale_rewards: true}
    update: {epochs: 2, num_minibatches: 2}
    kl: {coef: 0.05, target: 1.0, horizon: 100}
data:
  class_path: PromptDataModule
  init_args: {path: prompts.jsonl, batch_size: 4, max_prompt_tokens: 32, val_share: 0.1}
trainer:
  accelerator: cpu
  devices: 1
  precision: 32-true
  default_root_dir: run
  max_steps: 6
  val_check_interval: 3
  log_every_n_steps: 1
  callbacks:
    - {class_path: RunCheckpoint, init_args: {every_n_steps: 2}}
"""

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
    (folder / "ppo.yaml").write_text(CONFIG.replace("NETWORK", str(network)))
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
