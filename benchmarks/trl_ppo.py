"""TRL's PPO and GRPO from the same policy and reward; run in their environments as `python -m benchmarks.trl_ppo JOB`.

PPO is that of TRL 1.12, the last release that ships it; GRPO that of the newest.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.ppo_workload import PPOJob
from benchmarks.step_clock import StepClock
from benchmarks.trainer_ticker import Ticker


def shared(job: PPOJob) -> dict[str, Any]:
    """Settings of both, tuned for the comparison: float32, no gradient checkpointing, the same optimizer."""
    return {
        "output_dir": job.scratch,
        "learning_rate": job.lr,
        "adam_epsilon": 1e-5,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": job.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "per_device_train_batch_size": job.num_answers,
        "temperature": job.temperature,
        "seed": 0,
    }


def ppo(job: PPOJob, clock: StepClock, tokenizer: Any) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def encode(record: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer(record["prompt"])["input_ids"]}

    prompts = load_dataset("json", data_files=job.prompts, split="train").map(encode, remove_columns=["prompt"])
    models = [AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32) for _ in range(2)]
    judges = [
        AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    ]
    settings = PPOConfig(
        **shared(job),
        total_episodes=job.num_answers * (job.warmup + job.steps),
        num_ppo_epochs=job.epochs,
        num_mini_batches=1,
        local_rollout_forward_batch_size=job.num_answers,
        response_length=job.max_new_tokens,
        stop_token="eos",
        num_sample_generations=0,
    )
    tokenizer.padding_side = "left"
    PPOTrainer(
        args=settings, processing_class=tokenizer, model=models[0], ref_model=models[1], reward_model=judges[0],
        value_model=judges[1], train_dataset=prompts, eval_dataset=prompts.select(range(2)), callbacks=[Ticker(clock)],
    ).train()  # fmt: skip


def grpo(job: PPOJob, clock: StepClock, tokenizer: Any) -> None:
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        **shared(job),
        model_init_kwargs={"dtype": "float32"},
        max_steps=job.warmup + job.steps,
        num_generations=job.num_samples,
        num_iterations=job.epochs,
        max_completion_length=job.max_new_tokens,
        top_k=0,
        beta=0.04,
    )
    GRPOTrainer(
        model=job.folder,
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1, dtype=torch.float32),
        args=settings,
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=job.prompts, split="train"),
        callbacks=[Ticker(clock)],
    ).train()


def main(job: PPOJob) -> None:
    torch.manual_seed(0)
    clock = StepClock(job.result, job.warmup, job.steps, job.device)
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    (grpo if job.algorithm == "grpo" else ppo)(job, clock, tokenizer)
    clock.report(loss=0.0)


if __name__ == "__main__":
    main(PPOJob(**json.loads(Path(sys.argv[1]).read_text())))
