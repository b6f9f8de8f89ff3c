"""The YAML of the small runs that tests start by the command line."""

from typing import Any

import yaml

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "default_root_dir": "run",
    "log_every_n_steps": 1,
}


def config_of(model: dict[str, Any], data: dict[str, Any], **trainer: Any) -> str:
    """A whole configuration: each step logged, on one core."""
    return yaml.safe_dump({"model": model, "data": data, "trainer": TRAINER | trainer}, sort_keys=False)


def part(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def adamw(lr: float, **init_args: Any) -> dict[str, Any]:
    return part("torch.optim.AdamW", lr=lr, **init_args)


def saves_every(n_steps: int) -> dict[str, Any]:
    return part("RunCheckpoint", every_n_steps=n_steps)


def samples_of(num_tokens: int) -> dict[str, Any]:
    return part("Samples", max_new_tokens=num_tokens)
