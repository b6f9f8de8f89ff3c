"""What all trainers of TRL are given alike, so that they do what ours does."""

from typing import Any


def shared(job: Any) -> dict[str, Any]:
    """Arguments of `SFTConfig` and `RewardConfig`, from an `SFTJob` or a `RewardJob`."""
    return {
        "output_dir": job.scratch,
        "num_train_epochs": 1,
        "max_length": job.seq_len,
        "model_init_kwargs": {"dtype": "float32"},
        "optim": "adamw_torch_fused",
        "learning_rate": job.optimizer["lr"],
        "adam_beta1": job.optimizer["betas"][0],
        "adam_beta2": job.optimizer["betas"][1],
        "adam_epsilon": job.optimizer["eps"],
        "weight_decay": job.optimizer["weight_decay"],
        "max_grad_norm": job.max_norm,
        "lr_scheduler_type": "constant",
        "use_cpu": job.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
    }
