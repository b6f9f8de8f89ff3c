"""Speed and memory of supervised fine-tuning, llm-lightning against TRL's SFTTrainer; and of preparing the data.

    python benchmarks/peers.py trl      # once: TRL in an environment of its own
    python benchmarks/sft.py --model 9m 135m --method full lora --data my.jsonl --json results.jsonl
    python benchmarks/sft.py --prepare --data my.jsonl --json results.jsonl

What is compared is one pass over the same records from the same weights, by the same AdamW, gradient clipping and
threads, with the loss on the replies alone. How many records fit a step differs: ours and TRL's packing take full rows,
TRL's other settings as many records as these rows hold on average, so that all make about as many steps of about as
many tokens. So that no lucky batch counts, all steps of the pass are timed but the first few, and what a step trained
on is counted from its batch; reading the data and loading the model are not timed. The column of trained tokens is of
the whole pass, and shows that all trained the same; the loss is the mean over the timed tokens. Records that do not fit
a row are left out for all. Each measurement is a fresh process; contenders run in turns, and medians are reported.

- `llm-lightning`, `llm-lightning-compile`, `llm-lightning-checkpointing`: the real command line, callbacks included;
  the last one recomputes activations in the backward pass, as TRL does by default.
- `trl`: its defaults, which are padding, bf16 and gradient checkpointing, whatever --precision says.
- `trl-tuned`: without checkpointing, in the precision of the table, as are the next two.
- `trl-padding-free`: the records of a batch in one row, with SDPA (its flash attention needs a GPU).
- `trl-packing`: best-fit decreasing into rows, with SDPA.

`--method lora-int8`, ours alone: the adapter on a network that torchao holds in 8 bits.

With --prepare: records/s from the file to tokenized rows, with nothing cached, imports left out. Ours packs; `trl` does
not, `trl-packing` does, and has as many processes as --threads says.
"""

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.peers import PEERS
from benchmarks.runner import (
    OURS,
    ROOT,
    Contender,
    Figures,
    Metric,
    add_arguments,
    chosen,
    chosen_device,
    compare,
    fit,
    medians,
    script,
)
from benchmarks.sft_workload import (
    EMBEDDED,
    LORA,
    SFT_QUICK,
    SFT_SHAPES,
    PreparationJob,
    Prepared,
    SFTJob,
    enough,
    prepare,
    write_pairs,
)
from benchmarks.workload import Shape

METRICS = [
    Metric("trained_tokens_per_s", "tokens/s", "trained/s", 10),
    Metric("trained_tokens_per_cpu_s", "tokens/s", "per CPU-s", 11),
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
    Metric("records_per_s", "records/s", "records/s", 11, ",.1f"),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
    Metric("loss", "nats", "loss", 9, ".4f"),
    Metric("trained_tokens", "tokens", "trained", 9),
]
PREPARATION_METRICS = [
    Metric("prepared_records_per_s", "records/s", "records/s", 11),
    Metric("prepared_records_per_cpu_s", "records/s", "per CPU-s", 11),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
]
SAME_WORK = 0.01
"""Relative; where a model's own template has a line end after a reply, TRL learns that too."""


def our_command(job: SFTJob, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    settings: dict[str, Any] = {
        "config": ROOT / "benchmarks" / "sft.yaml",
        "model.backbone.path": job.folder,
        "model.backbone.compile": str(job.compile).lower(),
        "model.backbone.activation_checkpointing": str(job.checkpointing).lower(),
        "data.path": job.records,
        "data.seq_len": job.seq_len,
        "data.batch_size": job.rows,
        "data.cache_dir": f"{job.scratch}/cache",
        "trainer.precision": job.precision,
        "trainer.accelerator": job.device,
        "trainer.devices": 1,
        "trainer.default_root_dir": job.scratch,
        "trainer.callbacks+": "benchmarks.step_timer.PassTimer",
        "trainer.callbacks.result": job.result,
        "trainer.callbacks.warmup": job.warmup,
    }
    if job.method == "lora-int8":
        scheme = {"quant_type": {"class_path": "torchao.quantization.Int8WeightOnlyConfig"}}
        settings["model.backbone.quantization"] = {"class_path": "transformers.TorchAoConfig", "init_args": scheme}
    if job.method != "full":
        settings["model.peft"] = "peft.LoraConfig"
        settings |= {f"model.peft.{name}": value for name, value in LORA.items()}
    return fit(settings)


def trl(setting: str, quick: bool = False) -> Contender:
    name = "trl" if setting == "default" else f"trl-{setting}"
    return Contender(name, script("trl_sft", "trl"), quick, {"setting": setting})


CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-compile", our_command, changes={"compile": True}),
    Contender(f"{OURS}-checkpointing", our_command, changes={"checkpointing": True}),
    trl("default", quick=True),
    trl("tuned"),
    trl("padding-free"),
    trl("packing"),
]
PREPARERS = [
    Contender(OURS, script("our_preparation"), quick=True),
    Contender("trl", script("trl_preparation", "trl"), quick=True, changes={"setting": "default"}),
    Contender("trl-packing", script("trl_preparation", "trl"), changes={"setting": "packing"}),
]


def differences(figures: Figures) -> list[str]:
    """A line for each contender that trained on other tokens than ours."""
    if OURS not in figures:
        return []
    trained = {name: medians(runs)["trained_tokens"] for name, runs in figures.items()}
    return [
        f"{name} trained on {tokens:,.0f} tokens and {OURS} on {trained[OURS]:,.0f}: they did not do the same work"
        for name, tokens in trained.items()
        if not math.isclose(tokens, trained[OURS], rel_tol=SAME_WORK)
    ]


def benchmark(model: str, data: str, shape: Shape, args: argparse.Namespace) -> int:
    """A table for each method and precision; returns the number of contenders that failed."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        prepared = prepare(Path(folder), data, shape, args.weights)
        records = Path(folder) / "records.jsonl"
        tokens_per_step = shape.rows * shape.seq_len
        indices = list(enough(prepared.lengths, tokens_per_step * (shape.warmup + shape.steps)))
        write_pairs(records, [prepared.pairs[index] for index in indices])
        properties = of_data(data, prepared, indices)
        batch_size = max(1, round(tokens_per_step / properties["mean_record_tokens"]))
        for method, precision in itertools.product(args.method, args.precision):
            job = SFTJob(
                folder=str(prepared.folder), records=str(records), scratch="", result="", rows=shape.rows,
                seq_len=shape.seq_len, batch_size=batch_size, warmup=shape.warmup, method=method, precision=precision,
                device=args.device,
            )  # fmt: skip
            settings = {"method": method, "precision": precision, "rows": shape.rows, "seq_len": shape.seq_len}
            settings |= {"batch_size": batch_size} | properties
            title = f"{name_of(model, args)}, {method}, {precision}, {len(indices)} records of {properties['data']}, "
            title += f"{shape.rows} x {shape.seq_len} tokens or {batch_size} records a step"
            contenders = chosen(CONTENDERS, args)
            figures, failed = compare("sft", name_of(model, args), contenders, job, METRICS, settings, title, args)
            failures += failed
            for difference in differences(figures):
                print(difference)
    return failures


def benchmark_preparation(data: str, args: argparse.Namespace) -> int:
    """One table; returns the number of contenders that failed."""
    shape = SFT_SHAPES["9m", "cpu"]
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        prepared = prepare(Path(folder), data, shape, args.weights)
        records = Path(folder) / "records.jsonl"
        indices = list(itertools.islice(itertools.cycle(range(len(prepared.pairs))), args.records))
        write_pairs(records, [prepared.pairs[index] for index in indices])
        job = PreparationJob(
            folder=str(prepared.folder), records=str(records), scratch="", result="", seq_len=shape.seq_len,
            num_records=args.records, num_processes=args.threads,
        )  # fmt: skip
        settings = {"device": "cpu", "seq_len": shape.seq_len} | of_data(data, prepared, indices)
        title = f"preparing {args.records} records of {settings['data']}, rows of {shape.seq_len} tokens"
        contenders = chosen(PREPARERS, args)
        model = name_of("9m", args)
        _, failed = compare("sft", model, contenders, job, PREPARATION_METRICS, settings, title, args)
    return failed


def of_data(data: str, prepared: Prepared, indices: Sequence[int]) -> dict[str, Any]:
    """What the JSON says of the chosen records and of the peer."""
    return {
        "data": Path(data).name,
        "num_records": len(indices),
        "mean_record_tokens": round(sum(prepared.lengths[index] for index in indices) / len(indices), 1),
        "records_too_long": prepared.num_too_long,
        "trl": next(pin.partition("==")[2] for pin in PEERS["trl"] if pin.startswith("trl==")),
    }


def name_of(model: str, args: argparse.Namespace) -> str:
    return args.weights.name if args.weights else model


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in SFT_SHAPES}), default=["9m"])
    parser.add_argument("--method", nargs="+", choices=["full", "lora", "lora-int8"], default=["full"])
    parser.add_argument("--data", nargs="+", default=[EMBEDDED], metavar="FILE", help=f"default: {EMBEDDED}, embedded")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="train this model, in --model's steps")
    parser.add_argument("--prepare", action="store_true", help="measure the preparation of the data instead")
    parser.add_argument("--records", type=int, default=20_000, help="of --prepare, the file's again and again")
    parser.add_argument("--quick", action="store_true", help="about a minute: 9m, full, 32-true, ours and trl only")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.method, args.precision, args.repeats, args.records = ["9m"], ["full"], ["32-true"], 1, 2_000
    args.device = chosen_device(args.device)
    args.weights = args.weights and args.weights.resolve()  # contenders run in another folder
    for model in args.model:
        if (model, args.device) not in SFT_SHAPES:
            parser.error(f"--model {model} is not measured on {args.device}.")
    if args.weights and len(args.model) > 1:
        parser.error("--weights is one model: name one --model, whose steps it is to make.")
    for data in args.data:
        if data != EMBEDDED and not Path(data).is_file():
            parser.error(f"--data {data}: there is no such file.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    args = parse(argv)
    failures = 0
    for data in args.data:
        if args.prepare:
            failures += benchmark_preparation(data, args)
            continue
        for model in args.model:
            shape = SFT_QUICK if args.quick else SFT_SHAPES[model, args.device]
            failures += benchmark(model, data, shape, args)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
