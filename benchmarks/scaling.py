"""Steps, checkpoints and model folders on one and two ranks, by DDP and by FSDP2, of a network that is read.

    taskset -c 0,1 python benchmarks/scaling.py --model FOLDER [--quick] [--json FILE] [--only CONTENDER ...]

Each contender is the real command line with the same rows a rank, a core a rank, after two steps to get warm. The
checkpoint is saved and loaded in the run that made it; `2 to 1` loads that of two ranks on one.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from lightning.pytorch import Callback

from benchmarks.runner import ROOT, Metric, json_lines, machine

METRICS = [
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
    Metric("step_s", "s", "step s", 9, ".2f"),
    Metric("save_s", "s", "save s", 9, ".2f"),
    Metric("load_s", "s", "load s", 9, ".2f"),
    Metric("folder_s", "s", "folder s", 10, ".2f"),
    Metric("peak_memory_mb", "MB", "MB a rank", 11),
]
CONTENDERS = {"one": (1, "auto"), "ddp-2": (2, "ddp"), "fsdp2-1": (1, "fsdp2"), "fsdp2-2": (2, "fsdp2")}
WARM = 2


class Clock(Callback):
    """Times steps, then a checkpoint and a model folder; the first rank writes what it measured.

    Args:
        result: where to.
        checkpoint: where the checkpoint goes.
        other: a checkpoint of another number of ranks, to be loaded instead.
    """

    def __init__(self, result: str, checkpoint: str, other: str | None = None) -> None:
        self.result, self.checkpoint, self.other = result, checkpoint, other
        self.marks: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        marks = [*self.marks, time.perf_counter()]
        figures = {"step_s": statistics.median(b - a for a, b in zip(marks[WARM:], marks[WARM + 1 :], strict=False))}

        def clock(name: str, call: Any) -> None:
            trainer.strategy.barrier()
            start = time.perf_counter()
            call()
            trainer.strategy.barrier()
            figures[name] = time.perf_counter() - start

        def load() -> None:
            saved = trainer.strategy.load_checkpoint(self.other or self.checkpoint, weights_only=True)
            trainer.strategy.load_model_state_dict(saved, strict=pl_module.strict_loading)
            trainer.strategy.load_optimizer_state_dict(saved)

        clock("save_s", lambda: trainer.save_checkpoint(self.checkpoint))
        clock("load_s", load)
        clock("folder_s", lambda: pl_module.save_model(Path(self.checkpoint).with_name("folder")))
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        figures["peak_memory_mb"] = int(peak.split()[1]) / 1024
        if trainer.is_global_zero:
            Path(self.result).write_text(json.dumps(figures))


def command(args: argparse.Namespace, scratch: Path, devices: int, strategy: str, other: str | None) -> list[str]:
    clock = {"result": str(scratch / "result.json"), "checkpoint": str(scratch / "saved.ckpt"), "other": other}
    settings = {
        "model": "CausalPretraining", "model.backbone.path": args.model, "data": "TextDataModule",
        "data.path": str(scratch.parent / "texts.jsonl"), "data.seq_len": args.seq_len, "data.batch_size": 1,
        "trainer.accelerator": "cpu", "trainer.precision": "32-true", "trainer.devices": devices,
        "trainer.strategy": strategy, "trainer.max_steps": args.steps, "trainer.limit_val_batches": 0,
        "trainer.default_root_dir": str(scratch / "run"), "trainer.fast_dev_run": args.steps,
        "trainer.callbacks": json.dumps([{"class_path": "benchmarks.scaling.Clock", "init_args": clock}]),
    }  # fmt: skip
    return [sys.executable, "-m", "llm_lightning", "fit", *(f"--{key}={value}" for key, value in settings.items())]


def measure(args: argparse.Namespace, folder: Path, name: str, other: str | None = None) -> dict[str, float]:
    devices, strategy = CONTENDERS[name]
    scratch = folder / (name if other is None else "2 to 1")
    scratch.mkdir(exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LLM_LIGHTNING_CACHE": str(folder / "cache"),
        "TORCHELASTIC_RUN_ID": "scaling", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0",
        "WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices),
    }  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    ranks = []
    for rank in range(devices):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        line = ["taskset", "-c", str(cores[-1 - rank % len(cores)]), *command(args, scratch, devices, strategy, other)]
        ranks.append(subprocess.Popen(line, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    said = [process.communicate()[1] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"{name} failed: {said[0].decode()[-2000:]}")
    figures = json.loads((scratch / "result.json").read_text())
    return {"tokens_per_s": devices * args.seq_len / figures["step_s"]} | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the network")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="3 steps of 64 tokens")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME", help="contenders")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.seq_len, args.steps = 64, 3
    chosen = args.only or list(CONTENDERS)

    from datamodules.corpora.python_docs import documents

    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
        folder = Path(temporary)
        texts = [text for _, text in zip(range(200), documents(), strict=False)]
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(args.repeats):
            for name in chosen:
                figures.setdefault(name, []).append(measure(args, folder, name))
            if "fsdp2-2" in chosen:
                other = str(folder / "fsdp2-2" / "saved.ckpt")
                figures.setdefault("fsdp2, 2 to 1", []).append(measure(args, folder, "fsdp2-1", other))
    print(f"{'':15}" + "".join(f"{metric.title:>{metric.width}}" for metric in METRICS))
    for name, runs in figures.items():
        values = {metric.name: statistics.median(run[metric.name] for run in runs) for metric in METRICS}
        print(f"{name:15}" + "".join(f"{values[m.name]:>{m.width}{m.format}}" for m in METRICS))
    if args.json:
        settings = {"seq_len": args.seq_len, "steps": args.steps, "threads_a_rank": 1} | machine("cpu")
        lines = json_lines("scaling", Path(args.model).name, figures, METRICS, settings)
        with args.json.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
