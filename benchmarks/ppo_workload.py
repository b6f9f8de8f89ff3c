"""What every contender of the PPO benchmark starts from: the same policy, reward model and prompts of mixed length."""

import json
import random
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.workload import SHAPES, train_tokenizer

PROMPT_TOKENS = (8, 96)
"""Lengths of prompts, evenly spread."""

MEAN_ANSWER = 48
"""Tokens until the policy's EOS, on average, where nothing cuts a completion off. An untrained network would write EOS
once in a vocabulary, and every completion would be as long as it may be."""

LONGEST_ANSWER = 128


PHASES = ("rollout_s", "reward_s", "evaluate_s", "update_s")
"""What ours logs of a step, beside its loss: seconds of its parts."""


@dataclass(frozen=True)
class PPOShape:
    """Steps that are measured: `num_answers` a step, `warmup` and `steps` of them."""

    num_answers: int
    warmup: int
    steps: int


PPO_SHAPES = {"tiny": PPOShape(4, 1, 1), "9m": PPOShape(64, 1, 4), "135m": PPOShape(16, 1, 2)}
PPO_QUICK = PPOShape(16, 1, 2)


@dataclass
class PPOJob:
    """A number of PPO steps, as the child process reads it from a JSON file.

    Args:
        folder: the policy, float32, with its tokenizer.
        reward: a reward model of the same shape, with the same tokenizer.
        prompts: .jsonl file of {prompt}.
        scratch: folder for what the contender writes.
        result: where the clock writes its figures.
        num_answers: completions a step.
        warmup, steps: steps that are not timed, and that are.
        device: `cpu` or `cuda`.
        algorithm: `ppo` or `grpo`.
        num_samples: completions to a prompt, of `grpo`.
        critic: `network` or `trunk`, ours.
        epochs: times that a completion is trained on.
        precision: of ours, in Lightning's words; TRL's is float32.
    """

    folder: str
    reward: str
    prompts: str
    scratch: str
    result: str
    num_answers: int
    warmup: int
    steps: int
    device: str
    algorithm: str = "ppo"
    num_samples: int = 1
    critic: str = "network"
    epochs: int = 4
    max_new_tokens: int = LONGEST_ANSWER
    temperature: float = 1.0
    lr: float = 3e-6
    precision: str = "32-true"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        """The metrics of one run."""
        samples = self.steps * self.num_answers
        return {
            "samples_per_s": samples / measured["wall_s"],
            "samples_per_cpu_s": samples / measured["cpu_s"],
            "peak_memory_mb": measured["peak_memory_mb"],
            **{name: seconds / self.steps for name, seconds in measured.items() if name in PHASES},
        }


def write_models(folder: Path, model: str) -> tuple[Path, Path]:
    """A policy and a reward model from random weights; its completions end after `MEAN_ANSWER` on average."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    settings = SHAPES[model, "cpu"].config
    tokenizer = train_tokenizer(_texts(), settings["vocab_size"])
    tokenizer.pad_token = tokenizer.eos_token
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**settings | ends))
    _give_an_end(policy, tokenizer.eos_token_id)
    reward = LlamaForSequenceClassification(LlamaConfig(**settings | ends, num_labels=1))
    for name, network in (("policy", policy), ("reward", reward)):
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "policy", folder / "reward"


@cache
def _texts() -> list[str]:
    """The standard library's documentation; to read it takes seconds."""
    from datamodules.corpora import python_docs

    return list(python_docs.documents())


def _give_an_end(policy: Any, eos: int) -> None:
    """One coordinate of the hidden states is made the same everywhere, and EOS the token that looks at it."""
    import torch

    weight = policy.get_input_embeddings().weight.data
    weight[:, 0] = 1.0
    ids = torch.randint(weight.shape[0], (8, 64), generator=torch.Generator().manual_seed(1))
    low, high = 0.0, 50.0
    with torch.no_grad():
        states = policy.model(ids).last_hidden_state.flatten(0, 1)
        for _ in range(40):  # bisection; the embedding of EOS is not among the inputs that matter
            weight[eos, 0] = (low + high) / 2
            share = float((states @ weight.t()).softmax(-1)[:, eos].median())
            low, high = (low, float(weight[eos, 0])) if share > 1 / MEAN_ANSWER else (float(weight[eos, 0]), high)


def write_prompts(path: Path, tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts that are beginnings of the standard library's documentation; returns their token ids."""
    rng = random.Random(0)
    texts = [text for text in _texts() if len(text) > 600]
    prompts = []
    for _ in range(count):
        ids = tokenizer(rng.choice(texts))["input_ids"][: rng.randint(*PROMPT_TOKENS)]
        prompts.append(tokenizer.decode(ids))
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return [tokenizer(prompt)["input_ids"] for prompt in prompts]
