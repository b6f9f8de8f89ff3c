"""What pruning costs SmolLM2-135M: perplexity, size and speed, by criterion and structure, one shot and with recovery.

Perplexity is that of 12 windows of 512 tokens at the beginning of wikitext2's valid.txt. Calibration and recovery see
the Alpaca demonstrations (`other` text), or what follows these windows (`own` text, in the structured settings).
Ours runs through the real command line; each setting is one row and can run alone: --only NAME.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402

from benchmarks.peers import peer_python  # noqa: E402
from benchmarks.runner import machine  # noqa: E402
from callbacks.monitoring.measurement import measure_speed, text_table  # noqa: E402

WINDOWS, WINDOW, SEQ_LEN, ROWS, CALIBRATION, RECOVERY = 12, 512, 512, 2, 8, 60


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Args:
        structure: as in the YAML; None for the dense network.
        criterion: as in the YAML, or llm-compressor's method.
        options: of the criterion.
        steps: of the run; more than `CALIBRATION` is recovery.
        progressive: over the first half of the run instead of at once.
        text: `other` or `own`.
        peer: whether llm-compressor does it.
    """

    structure: dict[str, Any] | None = None
    criterion: str = "Wanda"
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = CALIBRATION
    progressive: bool = False
    text: str = "other"
    peer: bool = False


def unstructured(sparsity: float) -> dict[str, Any]:
    return {"class_path": "Unstructured", "init_args": {"sparsity": sparsity}}


TWO_OF_FOUR = {"class_path": "NM", "init_args": {"n": 2, "m": 4}}
TARGETS = {"30": unstructured(0.3), "50": unstructured(0.5), "60": unstructured(0.6), "2:4": TWO_OF_FOUR}


def structured(**shares: float) -> dict[str, Any]:
    return {"class_path": "Structured", "init_args": shares}


SETTINGS = {"dense": Setting()}
for _name, _structure in TARGETS.items():
    SETTINGS[f"magnitude-{_name}"] = Setting(_structure, "Magnitude", steps=1)
    SETTINGS[f"wanda-{_name}"] = Setting(_structure)
    SETTINGS[f"sparsegpt-{_name}"] = Setting(_structure, "SparseGPT")
    SETTINGS[f"sparsegpt-unrefined-{_name}"] = Setting(_structure, "SparseGPT", {"refinements": 0})
    SETTINGS[f"sparsegpt-{_name}-recovered"] = Setting(_structure, "SparseGPT", steps=RECOVERY)
    SETTINGS[f"progressive-{_name}"] = Setting(_structure, steps=RECOVERY, progressive=True)
SETTINGS |= {
    "compressor-wanda-2:4": Setting(TWO_OF_FOUR, "wanda", peer=True),
    "compressor-sparsegpt-2:4": Setting(TWO_OF_FOUR, "sparsegpt", peer=True),
    "ffn-25-magnitude": Setting(structured(channels=0.25), "Magnitude", steps=1, text="own"),
    "ffn-25": Setting(structured(channels=0.25), text="own"),
    "ffn-25-recovered": Setting(structured(channels=0.25), steps=RECOVERY, text="own"),
    "ffn-33-kv-33": Setting(structured(channels=0.333, kv_groups=0.334), text="own"),
    "ffn-33-kv-33-recovered": Setting(
        structured(channels=0.333, kv_groups=0.334), steps=2 * RECOVERY, progressive=True, text="own"
    ),
}
QUICK = ("dense", "magnitude-50", "wanda-50")


@dataclass
class Data:
    """Texts and the model, once for all settings."""

    model: Path
    folder: Path
    windows: torch.Tensor = field(init=False)

    def prepare(self, wikitext: Path, other: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        text = wikitext.read_text()
        ids = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        self.windows = ids.input_ids[0, : WINDOWS * WINDOW].view(WINDOWS, WINDOW)
        behind = int(ids.offset_mapping[0, WINDOWS * WINDOW, 0])
        articles = text[behind:].split("\n = ")
        write_texts(self.folder / "own.jsonl", articles)
        records = ["\n".join(map(str, record.values())) for record in json.loads(other.read_text())]
        # Long texts, cut into whole rows: what llm-compressor is given, too.
        write_texts(self.folder / "other.jsonl", ["\n\n".join(records[i : i + 25]) for i in range(0, len(records), 25)])
        rows = tokenizer("\n\n".join(records)).input_ids
        count = CALIBRATION * ROWS
        chunks = [rows[i * SEQ_LEN : (i + 1) * SEQ_LEN] for i in range(count)]
        (self.folder / "rows.json").write_text(json.dumps(chunks))


def write_texts(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def callbacks_of(setting: Setting) -> list[dict[str, Any]]:
    schedule: dict[str, Any] = {"class_path": "OneShot", "init_args": {"end": min(setting.steps, CALIBRATION)}}
    if setting.progressive:
        schedule = {"class_path": "Cubic", "init_args": {"begin": 2, "end": setting.steps // 2, "interval": 4}}
    criterion = {"class_path": setting.criterion, "init_args": setting.options}
    pruning = {"structure": setting.structure, "criterion": criterion, "schedule": schedule}
    return [{"class_path": "Pruning", "init_args": pruning | {"num_batches": 0}}]


def fit(data: Data, scratch: Path, callbacks: list[dict[str, Any]], steps: int, text: str, rows: int = ROWS) -> Path:
    """Our command line; returns the model folder."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0, "fused": True}}
    model = {
        "backbone": {"path": str(data.model)},
        "optimizer": optimizer,
        "schedule": {"kind": "linear", "warmup": 0.05},
    }
    texts = {"path": str(data.folder / f"{text}.jsonl"), "seq_len": SEQ_LEN, "batch_size": rows, "val_share": 0.02}
    rare = {"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 100000}}
    config = {
        "model": {"class_path": "CausalPretraining", "init_args": model},
        "data": {"class_path": "TextDataModule", "init_args": texts},
        "trainer": {
            "default_root_dir": str(scratch),
            "max_steps": steps,
            "val_check_interval": steps,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "precision": "32-true",
            "accelerator": "cpu",
            "callbacks": [*callbacks, rare],
        },
    }
    path = scratch / "benchmark.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "llm_lightning", "fit", "--config", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return scratch / "model" / "last"


def overhead(data: Data) -> dict[str, float]:
    """Processor time of a step of 512 tokens between two changes of the masks, half way to 2:4, against a dense one.

    Wanda gathers activations and the masks are at work, all through the timed steps. Medians of three turns.
    """
    schedule = {"class_path": "Linear", "init_args": {"begin": 1, "end": 21, "interval": 10}}
    pruning = {"class_path": "Pruning", "init_args": {"structure": TWO_OF_FOUR, "schedule": schedule, "num_batches": 0}}
    contenders = {"dense": [], "pruned": [pruning]}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _, (name, callbacks) in product(range(3), contenders.items()):
        with tempfile.TemporaryDirectory(prefix="pruning-", dir=data.folder) as scratch:
            result = Path(scratch) / "times.json"
            timer = {"class_path": "benchmarks.step_timer.StepTimer",
                     "init_args": {"result": str(result), "warmup": 12, "steps": 9}}  # fmt: skip
            # Before the pruning: its clock stops at step 21 ahead of the last change of the masks.
            fit(data, Path(scratch), [timer, *callbacks], 21, "own", rows=1)
            seconds[name].append(json.loads(result.read_text())["cpu_s"] / 9)
    dense, pruned = (median(each) for each in seconds.values())
    return {"dense_step_s": dense, "pruned_step_s": pruned, "overhead": pruned / dense - 1}


def compress(setting: Setting, data: Data, scratch: Path) -> Path:
    """llm-compressor; returns a file with the weights."""
    job = {"folder": str(data.model), "rows": str(data.folder / "rows.json"), "method": setting.criterion,
           "sparsity": 0.5, "mask": "2:4", "result": str(scratch / "weights.pt")}  # fmt: skip
    path = scratch / "job.json"
    path.write_text(json.dumps(job))
    command = [str(peer_python("llm-compressor")), "-m", "benchmarks.llm_compressor", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return scratch / "weights.pt"


@torch.no_grad()
def judge(network: Any, windows: torch.Tensor) -> dict[str, float]:
    """Perplexity, sizes and speed of a network."""
    network.eval()
    losses = [float(network(input_ids=row[None], labels=row[None]).loss) for row in windows]
    speed = measure_speed(network, windows[:1, :256], num_new_tokens=32, repeats=3)
    zeros = sum(int((p == 0).sum()) for p in network.parameters())
    size = sum(p.numel() for p in network.parameters())
    return {
        "perplexity": math.exp(sum(losses) / len(losses)),
        "parameters": size,
        "zeros": zeros / size,
        "mb": sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "decode_tokens_per_s": speed.decode_tokens_per_s,
    }


def measure(name: str, data: Data) -> dict[str, float]:
    """One setting from the dense model to its figures."""
    from transformers import AutoModelForCausalLM

    setting, start = SETTINGS[name], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pruning-", dir=data.folder) as scratch:
        folder = data.model
        if setting.structure and not setting.peer:
            folder = fit(data, Path(scratch), callbacks_of(setting), setting.steps, setting.text)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if setting.peer:
            network.load_state_dict(torch.load(compress(setting, data, Path(scratch)), weights_only=True))
        seconds = time.perf_counter() - start
        return judge(network, data.windows) | {"seconds": seconds}


UNITS = {"perplexity": "", "parameters": "", "zeros": "", "mb": "MB", "prefill_tokens_per_s": "tokens/s",
         "decode_tokens_per_s": "tokens/s", "seconds": "s"}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M as a folder with safetensors")
    parser.add_argument("--wikitext", type=Path, default=ROOT / "../shared/data/wikitext2/valid.txt")
    parser.add_argument("--other", type=Path, default=ROOT / "../shared/data/llamafactory/alpaca_en_demo.json")
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS, "overhead"], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a figure")
    args = parser.parse_args()
    settings = machine("cpu") | {"threads": torch.get_num_threads(), "calibration_tokens": CALIBRATION * ROWS * SEQ_LEN,
                                 "recovery_steps": RECOVERY, "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory(prefix="pruning-") as scratch:
        data = Data(args.model.resolve(), Path(scratch))
        data.prepare(args.wikitext, args.other)
        for name in args.only or (QUICK if args.quick else SETTINGS):
            figures = overhead(data) if name == "overhead" else measure(name, data)
            rows.append([name, *(f"{figures[key]:,.2f}" if key in figures else "" for key in UNITS)])
            if name == "overhead":
                print(figures)
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
            if args.json:
                lines = [
                    {"benchmark": "pruning", "contender": name, "model": "135m", "metric": key, "value": value,
                     "unit": UNITS.get(key, ""), "settings": settings}
                    for key, value in figures.items()
                ]  # fmt: skip
                with args.json.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
    print(text_table(["", *UNITS], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
