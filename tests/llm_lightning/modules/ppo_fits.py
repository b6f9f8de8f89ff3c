"""What fits of the tiny policy by PPO have in common."""

import torch

from llm_lightning.modules.ppo.ppo import PPO
from llm_lightning.modules.ppo.settings import Rollout
from llm_lightning.rollouts import Sampling

ROLLOUT = Rollout(Sampling(12))


def share_of_a(prompts, completions, columns):
    """The share of characters that are an a or one of its neighbours: dense enough to learn in seconds."""
    return [sum(c in "abcde" for c in text) / max(1, len(text)) for text in completions]


def fast(lr):
    return lambda params: torch.optim.AdamW(params, lr=lr, eps=1e-5, weight_decay=0.0)


class Recorder(PPO):
    """Keeps each step's experience and metrics."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history, self.experiences = [], []

    def evaluate(self, experience):
        super().evaluate(experience)
        self.experiences.append(experience)

    def finish(self, metrics, phases, num_completions):
        super().finish(metrics, phases, num_completions)
        self.history.append(metrics)
