"""A trace of one step of pretraining, and what cost most in it; run as `python -m benchmarks.on_gpu.profile`."""

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.on_gpu.figures import append
from benchmarks.on_gpu.pretraining import arguments, job_of
from benchmarks.pretraining import our_command


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help=".json.gz file")
    args = parser.parse_args()
    job = job_of(args)
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        job.scratch, job.result = f"{scratch}/run", f"{scratch}/clock.json"
        table = Path(scratch) / "table.json"
        own = {"trace": str(args.trace.resolve()), "table": str(table), "step": job.warmup + 1}
        options = ["--trainer.callbacks+=benchmarks.on_gpu.one_step.OneStep"]
        options += [f"--trainer.callbacks.{name}={value}" for name, value in own.items()]
        subprocess.run([*our_command(job, Path(scratch)), *options], check=True)
        for name, milliseconds, calls in json.loads(table.read_text()):
            values = {"time": (milliseconds, "ms"), "calls": (calls, "")}
            settings = {"rows": args.rows, "seq_len": args.seq_len, "precision": args.precision}
            append(args.json, "profile", name, args.model, values, **settings)


if __name__ == "__main__":
    main()
