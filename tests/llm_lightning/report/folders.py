"""Run folders as `fit` leaves them, with what a test wants to be different."""

import json
from pathlib import Path
from typing import Any

import yaml

METRICS = """\
step,tokens,data/num_tokens,data/padded_share,train/loss,train/lr,throughput/tokens_per_s,val/loss,val/perplexity
1,,683973,0.0008,,,,,
10,2048,,,3.5,0.001,1000,,
20,4096,,,2.5,0.0005,1200,2.75,15.6
30,6144,,,2.25,0.0001,1100,2.5,12.2
"""

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"max_steps": 30, "precision": "32-true", "default_root_dir": "runs/one"},
    "model": {
        "class_path": "llm_lightning.modules.CausalPretraining",
        "init_args": {
            "backbone": {
                "path": None,
                "config": {"class_path": "transformers.LlamaConfig", "init_args": {"hidden_size": 64}},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "betas": [0.9, 0.95]}},
        },
    },
    "data": {
        "class_path": "datamodules.TextDataModule",
        "init_args": {"path": "texts.jsonl", "seq_len": 64, "sources": None},
    },
}

SCHEME = {
    "perplexity": 21.3, "kl": None, "top_token_agreement": None, "disk_bytes": 16e6, "memory_bytes": 15.9e6,
    "prefill_tokens_per_s": 900.3, "decode_tokens_per_s": 40.2,
}  # fmt: skip

SAFETY = {
    "format": 1, "step": 24, "level": 0.05, "worse": ["safe prompts refused"], "verdict": "worse than before",
    "changes": [
        {
            "task": "local_xstest", "metric": "refused_safe", "name": "safe prompts refused", "before": 0.1,
            "after": 0.5, "difference": 0.4, "low": 0.3, "high": 0.5, "p": 0.001, "corrected_p": 0.004,
            "smallest": 0.1, "test": "McNemar, exact", "num_items": 250, "num_left_out": 2,
            "higher_is_better": False, "outcome": "worse",
        },
    ],
    "judged_by": {"local_xstest": "rules"}, "judge_prompts": {"local_xstest": "Is it a refusal?"},
    "unreadable": {"a": 3}, "asked_differently": ["limit"], "action": "warn", "checks": [{"step": 12, "worse": []}],
}  # fmt: skip

CURVE = {
    "samples": [1, 2, 4], "tokens": [9.5, 19.0, 38.0], "seconds": [0.5, 1.0, 2.0], "num_prompts": 70,
    "right": {
        name: [{"value": value, "low": value - 0.1, "high": value + 0.1} for value in values]
        for name, values in (("any", (0.2, 0.4, 0.8)), ("vote", (0.2, 0.25, 0.375)))
    },
}  # fmt: skip


def write_run(folder: Path, lr: float = 0.001, **files: str) -> Path:
    """Write a finished run; a file is named by its stem with `_` for its dot, and "" leaves it out."""
    config = json.loads(json.dumps(CONFIG))
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = lr
    contents = {
        "config_yaml": yaml.safe_dump(config),
        "metrics_csv": METRICS,
        "commands_txt": "2026-11-29 15:30:12: llm-lightning fit --config tiny.yaml\n",
        **files,
    }
    (folder / "model" / "last").mkdir(parents=True)
    (folder / "samples").mkdir()
    for step in (20, 30):
        (folder / "samples" / f"step-{step:06d}.txt").write_text(f"--- prompt: ''\nwritten at {step}\n")
    for name, text in contents.items():
        if text:
            (folder / name.replace("_", ".")).write_text(text)
    return folder
