"""What `llm-lightning check` estimates of a step's memory, against the measured peak of the same fit.

    python -m benchmarks.memory_estimate --json benchmarks/results/memory_estimate.jsonl [--quick] [--only pretraining]

Each estimate and each fit is a process of its own, forked from one that has imported everything. On a CPU the measured
figure is how much the process grew: its peak of resident memory in the fit, less what it held before the network was
built, when a tiny one had been trained so that the libraries' own code and buffers were there. On a GPU it is torch's
peak of allocated memory.
"""

import argparse
import ctypes
import gc
import multiprocessing
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.runner import append_run
from benchmarks.workload import SHAPES

PRELOADED = [
    "torch",
    "transformers",
    "peft",
    "lightning.pytorch",
    "llm_lightning.modules",
    "llm_lightning.preflight.memory",
]
MIB = 2**20
TINY = SHAPES["9m", "cpu"].config | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Case:
    """One row of the table: stage, shape, rows and tokens of a micro-batch, and how it trains."""

    stage: str
    shape: str
    rows: int
    length: int
    method: str = "full"
    checkpointing: bool = False
    precision: str = "32-true"

    @property
    def name(self) -> str:
        """In words."""
        extra = "".join([", checkpointing" * self.checkpointing, f", {self.precision}" * (self.precision != "32-true")])
        return f"{self.stage} {self.shape} {self.rows} x {self.length} {self.method}{extra}"


QUICK = (Case("pretraining", "9m", 8, 256), Case("pretraining", "9m", 1, 2048, "lora"))
CASES = (
    Case("pretraining", "9m", 8, 256),
    Case("pretraining", "9m", 1, 2048),
    Case("pretraining", "9m", 1, 2048, checkpointing=True),
    Case("sft", "9m", 1, 2048, "lora"),
    Case("reward", "9m", 1, 2048),
    Case("dpo", "9m", 1, 2048),
    Case("dpo", "9m", 1, 2048, "lora"),
    Case("sft", "135m", 1, 256),
    Case("sft", "135m", 1, 512, "lora", checkpointing=True),
    Case("dpo", "135m", 1, 256, "lora"),
    Case("reward", "9m", 8, 256, "lora"),
    Case("sft", "9m", 8, 256, checkpointing=True),
    Case("pretraining", "9m", 1, 2048, precision="bf16-mixed"),
    Case("pretraining", "135m", 1, 1024, checkpointing=True),
    Case("pretraining", "135m", 2, 512),
    Case("dpo", "135m", 1, 512),
)


def module_of(case: Case) -> Any:
    """The module that a fit would train, with random weights."""
    from peft import LoraConfig
    from transformers import LlamaConfig

    from llm_lightning import modules
    from llm_lightning.models.backbone import Backbone

    kinds = {
        "pretraining": modules.CausalPretraining, "sft": modules.SupervisedFinetuning,
        "reward": modules.RewardModeling, "dpo": modules.PreferenceOptimization,
    }  # fmt: skip
    config = LlamaConfig(**TINY if case.shape == "tiny" else SHAPES[case.shape, "cpu"].config)
    peft = LoraConfig(r=16, target_modules="all-linear") if case.method == "lora" else None
    return kinds[case.stage](Backbone(config=config, activation_checkpointing=case.checkpointing), peft=peft)


def rows_of(case: Case) -> dict[str, Any]:
    """A micro-batch with random tokens."""
    import torch

    from llm_lightning.preflight.rows import packed_rows, pair_rows

    rows: dict[str, Any] = (packed_rows if case.stage in ("pretraining", "sft") else pair_rows)(case.rows, case.length)
    torch.manual_seed(0)
    rows["input_ids"] = torch.randint(8192, (case.rows, case.length))
    if "labels" in rows:
        rows["labels"] = torch.where(rows["labels"] == -100, -100, rows["input_ids"])
    return rows


def trainer_of(case: Case, steps: int) -> Any:
    """What Lightning needs for a fit that leaves nothing behind."""
    from lightning.pytorch import Trainer

    off = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    return Trainer(
        max_steps=steps, precision=case.precision, gradient_clip_val=1.0, use_distributed_sampler=False,
        barebones=False, **dict.fromkeys(off, False),
    )  # fmt: skip


def estimate(case: Case, results: Any) -> None:
    """In a process of its own: put the estimate there."""
    from llm_lightning.preflight.memory import estimate_step

    step = estimate_step(module_of(case), rows_of(case), trainer_of(case, 1))
    results.put({"estimate": step.total / MIB, "seconds": step.seconds} | {k: v / MIB for k, v in step.parts.items()})


def fit(case: Case, steps: int, results: Any) -> None:
    """In a process of its own: train, and put the peak there."""
    import torch

    from llm_lightning.process.allocator import keep_freed_memory

    keep_freed_memory()
    tiny = replace(case, shape="tiny", rows=2, length=64)
    trainer_of(tiny, 2).fit(module_of(tiny), torch.utils.data.DataLoader([rows_of(tiny)] * 2, batch_size=None))
    module, trainer, rows = module_of(case), trainer_of(case, steps), rows_of(case)
    module.backbone.behaviour(module.task)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.monotonic()
    trainer.fit(module, torch.utils.data.DataLoader([rows] * steps, batch_size=None))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM") - before
    results.put({"measured": peak / MIB, "fit_seconds": time.monotonic() - start})


def _status(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def run_apart(work: Any, *args: Any) -> dict[str, float]:
    """What `work` puts, in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results: Any = context.Queue()
    process = context.Process(target=work, args=(*args, results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} ended with {process.exitcode}")
    found: dict[str, float] = results.get()
    return found


def main() -> None:
    """Estimate and measure each case, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="STAGE")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{'':46}{'estimate':>10}{'measured':>10}{'error':>8}")
    for case in QUICK if args.quick else CASES:
        if args.only and case.stage not in args.only:
            continue
        found = run_apart(estimate, case) | run_apart(fit, case, args.steps)
        error = found["estimate"] / found["measured"] - 1
        print(f"{case.name:46}{found['estimate']:>7,.0f} MB{found['measured']:>7,.0f} MB{error:>8.1%}", flush=True)
        settings = asdict(case) | {"steps": args.steps} | found
        append_run(args.json, "memory_estimate", "llm-lightning", case.shape, ("relative_error", error, ""), settings)


if __name__ == "__main__":
    main()
