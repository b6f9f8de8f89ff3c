"""Speed and memory of PPO and GRPO: llm-lightning against TRL.

    python benchmarks/peers.py trl trl-ppo     # once: TRL in environments of their own
    python benchmarks/ppo.py --model 9m --json results.jsonl

All start from the same random weights, read the same prompts of mixed length (8 to 96 tokens), sample completions of
mixed length (48 tokens at the median, 128 at most), ask a reward model of the policy's size, and train on each
completion in 4 epochs of one batch (GRPO: one epoch, 4 completions a prompt). Whole steps are timed, after one to warm
up; each measurement is a fresh process, contenders run in turns, and medians are reported.

- `llm-lightning`: the real command line, the critic a network of its own, as TRL's.
- `llm-lightning-trunk`: the critic a head on the policy.
- `trl-ppo`: TRL 1.12, the last release with PPO, in float32 without gradient checkpointing.
- `llm-lightning-grpo`, `trl-grpo`: without a critic; TRL's newest.

Where only ours take part, the table has the seconds of a step's phases.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.ppo_workload import PHASES, PPO_QUICK, PPO_SHAPES, PPOJob, write_models, write_prompts
from benchmarks.runner import OURS, Contender, Metric, add_arguments, chosen, chosen_device, compare, fit, script

METRICS = [
    Metric("samples_per_cpu_s", "samples/s", "samples/CPU-s", 14, ".2f"),
    Metric("samples_per_s", "samples/s", "samples/s", 10, ".2f"),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
]
GRPO = {"algorithm": "grpo", "epochs": 1, "num_samples": 4}


def our_command(job: PPOJob, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    reward = {"class_path": "llm_lightning.rewards.RewardModel", "init_args": {"path": job.reward}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": job.lr, "eps": 1e-5, "fused": True}}
    settings: dict[str, Any] = {
        "model": "PPO",
        "model.backbone.path": job.folder,
        "model.rewards": {"model": {"function": reward}},
        "model.optimizer": optimizer,
        "model.schedule.kind": "constant",
        "model.schedule.warmup": 0,
        "model.rollout.sampling": {"max_new_tokens": job.max_new_tokens, "temperature": job.temperature},
        "model.rollout.num_samples": job.num_samples,
        "model.update.epochs": job.epochs,
        "data": "PromptDataModule",
        "data.path": job.prompts,
        "data.max_prompt_tokens": 128,
        "data.batch_size": job.num_answers // job.num_samples,
        "data.val_share": 0,
        "data.cache_dir": f"{job.scratch}/cache",
        "trainer.precision": job.precision,
        "trainer.accelerator": job.device,
        "trainer.devices": 1,
        "trainer.max_steps": job.warmup + job.steps,
        "trainer.default_root_dir": job.scratch,
        "trainer.callbacks+": "benchmarks.step_timer.StepTimer",
        "trainer.callbacks.result": job.result,
        "trainer.callbacks.warmup": job.warmup,
        "trainer.callbacks.steps": job.steps,
    }
    if job.algorithm == "grpo":
        settings |= {"model.advantages.kind": "grpo", "model.kl": {"coef": 0.04, "estimator": "k3", "place": "loss"}}
    else:
        settings["model.critic.kind"] = job.critic
    return fit(settings)


CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-trunk", our_command, quick=True, changes={"critic": "trunk"}),
    Contender("trl-ppo", script("trl_ppo", "trl-ppo")),
    Contender(f"{OURS}-grpo", our_command, changes=GRPO),
    Contender("trl-grpo", script("trl_ppo", "trl"), changes=GRPO),
]


def is_ours(contender: Contender) -> bool:
    """Whether it says what its phases take."""
    return contender.name.startswith(OURS)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(PPO_SHAPES), default=["9m"])
    parser.add_argument("--quick", action="store_true", help="about a minute: ours alone, few completions")
    parser.add_argument("--answers", type=int, help="completions a step; default: few, as suits a CPU")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args(argv)
    args.device, contenders = chosen_device(args.device), chosen(CONTENDERS, args)
    apart = [Metric(name, "s", name, 11, ".2f") for name in PHASES] if all(is_ours(c) for c in contenders) else []
    if args.quick:
        args.model, args.repeats = ["9m"], 1
    failures = 0
    for model in args.model:
        shape = PPO_QUICK if args.quick else PPO_SHAPES[model]
        if args.answers:
            shape = replace(shape, num_answers=args.answers)
        with tempfile.TemporaryDirectory(prefix="ppo-") as folder:
            from transformers import AutoTokenizer

            policy, reward = write_models(Path(folder), model)
            prompts = Path(folder) / "prompts.jsonl"
            tokenizer = AutoTokenizer.from_pretrained(policy)
            write_prompts(prompts, tokenizer, shape.num_answers * (shape.warmup + shape.steps + 1))
            job = PPOJob(
                folder=str(policy), reward=str(reward), prompts=str(prompts), scratch="", result="",
                num_answers=shape.num_answers, warmup=shape.warmup, steps=shape.steps, device=args.device,
                precision=args.precision[0],
            )  # fmt: skip
            settings = {name: getattr(job, name) for name in ("num_answers", "steps", "precision")}
            title = f"{model}, {shape.num_answers} answers a step, {shape.steps} steps"
            _, failed = compare("ppo", model, contenders, job, [*METRICS, *apart], settings, title, args)
        failures += failed
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
