"""`llm-lightning workspace STAGE`: a W&B workspace that shows what matters of a stage, made by code."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.loggers.wandb import BY_STEP
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser

# Sections by name; a panel draws the metrics of one list.
Sections = Mapping[str, Sequence[Sequence[str]]]

OPTIMIZATION = [["train/lr"], ["train/grad_norm"], ["train/skipped_steps"]]
THROUGHPUT = [["throughput/tokens_per_s"], ["throughput/mfu"], ["throughput/memory_mb"]]
LANGUAGE: Sections = {
    "Loss": [["train/loss", "val/loss"], ["val/perplexity"], ["train/accuracy", "val/accuracy"], ["val/bits_per_byte"]],
    "Optimization": OPTIMIZATION,
    "Throughput": THROUGHPUT,
}
STAGES: dict[str, Sections] = {
    "pretrain": LANGUAGE,
    "sft": LANGUAGE,
    "reward": {
        "Preference": [
            ["train/loss", "val/loss"],
            ["train/accuracy", "val/accuracy", "val/accuracy_low", "val/accuracy_high"],
            ["train/margin", "val/margin"],
            ["val/chosen_reward", "val/rejected_reward"],
        ],
        "Calibration and bias": [
            ["val/ece"],
            ["val/accuracy_if_longer", "val/accuracy_if_shorter"],
            ["val/length_correlation"],
        ],
        "Optimization": OPTIMIZATION,
        "Throughput": THROUGHPUT,
    },
    "dpo": {
        "Preference": [
            ["train/loss", "val/loss"],
            ["train/accuracy", "val/accuracy", "val/accuracy_low", "val/accuracy_high"],
            ["train/margin", "val/margin"],
            ["val/chosen_reward", "val/rejected_reward"],
        ],
        "Answers": [
            ["train/chosen_logprob", "train/rejected_logprob"],
            ["train/chosen_moved", "train/rejected_moved", "val/chosen_moved", "val/rejected_moved"],
            ["train/chosen_tokens", "train/rejected_tokens"],
        ],
        "Optimization": OPTIMIZATION,
        "Throughput": THROUGHPUT,
    },
    "ppo": {
        "Reward": [["train/reward", "val/reward"], ["train/kl"], ["train/kl_coef"], ["train/entropy"]],
        "Rollouts": [["rollout/completion_length"], ["rollout/eos_rate"], ["rollout/sampler_gap"]],
        "Updates": [["train/policy_loss"], ["train/value_loss"], ["train/explained_variance"], ["train/clip_share"]],
        "Optimization": [["train/lr"], ["train/grad_norm"], ["train/update_kl"]],
        "Throughput": [["throughput/samples_per_s"], ["throughput/rollout_s", "throughput/update_s"]],
    },
    "compress": {
        "Pruning": [["pruning/sparsity"], ["train/loss", "val/loss"]],
        "Quantization": [["quantization/perplexity"], ["quantization/disk_bytes"]],
        "Optimization": OPTIMIZATION,
        "Throughput": THROUGHPUT,
    },
}


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: stage and options.
        debug: show the traceback of an error.
    """
    parser = FlagParser(prog="llm-lightning workspace", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team; WANDB_ENTITY by default"
    )
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT", "llm-lightning"))
    try:
        given = parser.parse_args(args)
        if not given.entity:
            raise UserError("workspace: name the user or team by --entity, or set WANDB_ENTITY.")
        workspace = build(given.stage, given.entity, given.project)
        _check_login()
        workspace.save()
    except Exception as error:  # what wandb raises has no base in common
        return report(error, debug)
    return 0


def build(stage: str, entity: str, project: str) -> Any:
    """The workspace of a stage, not saved yet.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise UserError("workspace: install wandb-workspaces: pip install 'llm-lightning[workspaces]'.") from error
    sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[
                panels.LinePlot(title=", ".join(each.split("/")[1] for each in metrics), x=_axis(metrics), y=[*metrics])
                for metrics in plots
            ],
        )
        for name, plots in STAGES[stage].items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name=stage, sections=sections)


def _axis(metrics: Sequence[str]) -> str:
    return "trainer/global_step" if metrics[0].split("/")[0] in BY_STEP else "tokens"


def _check_login() -> None:
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise UserError("workspace: there is no W&B API key: run `wandb login`, or set WANDB_API_KEY.")
