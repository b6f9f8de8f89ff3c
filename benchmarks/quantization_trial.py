"""One scheme of benchmarks/quantization.py, in a process of its own: quantize, load, measure."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.quantization import LLM_COMPRESSOR, Job
from benchmarks.runner import script
from callbacks.monitoring.measurement import Speed, measure_quality
from callbacks.quantization import layers
from callbacks.quantization.choice import Measured
from callbacks.quantization.request import Request
from callbacks.quantization.schemes import SCHEMES
from callbacks.quantization.trial import Trial


def read_rows(job: Job) -> tuple[Tensor, Tensor]:
    """Rows to measure on, and those behind them to calibrate on, each (N, T)."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    num_rows = job.num_rows + job.num_calibration_rows
    # A token has some four bytes, and never more than 16 on average.
    text = Path(job.text).read_text(encoding="utf-8")[: 16 * num_rows * job.seq_len]
    ids = torch.tensor(tokenizer(text)["input_ids"][: num_rows * job.seq_len])
    measured, calibration = ids.view(num_rows, job.seq_len).split([job.num_rows, job.num_calibration_rows])
    return measured, calibration


def original(job: Job, scratch: Path) -> Path:
    """The network in the job's dtype."""
    network = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    network.save_pretrained(scratch / "original")
    AutoTokenizer.from_pretrained(job.model).save_pretrained(scratch / "original")
    return scratch / "original"


def try_scheme(job: Job, trial: Trial, rows: Tensor) -> Measured:
    """What is measured of the job's scheme."""
    scheme = SCHEMES[job.scheme]
    request = Request(
        source=trial.folder,
        output=trial.folder.with_name(job.scheme),
        bits=scheme.bits,
        group_size=job.group_size if scheme.grouped else None,
        symmetric=bool(scheme.symmetric),
        kept=layers.kept_layers(trial.network, None),
        device=trial.device,
        dtype=scheme.dtype or getattr(torch, job.dtype),
        rows=list(rows) if scheme.calibrated else (),
        options={"iters": job.iters} if scheme.calibrated else {},
    )
    return trial.run(job.scheme, request, {"num_rows": len(rows)})


def llm_compressor(job: Job, trial: Trial, rows: Tensor) -> Measured:
    """GPTQ by llm-compressor. Its weights come back as floats, so that only quality is theirs: size and speed are 0."""
    files = {name: f"{job.scratch}/{name}" for name in ("rows.json", "weights.pt", "peer.json")}
    Path(files["rows.json"]).write_text(json.dumps(rows.tolist()))
    peer = {"folder": str(trial.folder), "rows": files["rows.json"], "method": "gptq", "group_size": job.group_size}
    Path(files["peer.json"]).write_text(json.dumps(peer | {"result": files["weights.pt"]}))
    start = time.monotonic()
    subprocess.run(script("llm_compressor", "llm-compressor")(None, Path(files["peer.json"])), check=True)
    seconds = time.monotonic() - start
    network = AutoModelForCausalLM.from_pretrained(trial.folder)
    network.load_state_dict(torch.load(files["weights.pt"], weights_only=True))
    quality = measure_quality(network.eval(), trial.batches, trial.network)
    return Measured(job.scheme, quality, Speed(0.0, 0.0), 0, 0, seconds)


def main(path: Path) -> None:
    job = Job(**json.loads(path.read_text()))
    measured_rows, calibration_rows = read_rows(job)
    batches = [{"input_ids": row[None], "labels": row[None]} for row in measured_rows]
    trial = Trial(original(job, Path(job.scratch)), torch.device(job.device), batches)
    if job.scheme == "original":
        measured = trial.original
    else:
        attempt = llm_compressor if job.scheme == LLM_COMPRESSOR else try_scheme
        measured = attempt(job, trial, calibration_rows)
    Path(job.result).write_text(json.dumps(figures(measured)))


def figures(measured: Measured) -> dict[str, Any]:
    values = measured.as_dict()
    values["kl"] = values["kl"] or 0.0
    values["top_token_agreement"] = 1.0 if values["top_token_agreement"] is None else values["top_token_agreement"]
    return values | {"disk_mb": measured.disk_bytes / 1e6, "memory_mb": measured.memory_bytes / 1e6}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
