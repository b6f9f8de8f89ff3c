"""Speed of pretraining by how OpenMP's threads wait, on a quiet machine and beside processes that compute.

    python benchmarks/waiting.py --json results.jsonl

`llm-lightning` chooses by the load that it sees; the others are libgomp's own default and what a user could set. Each
measurement is a fresh process; contenders run in turns.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.pretraining import METRICS, our_command
from benchmarks.runner import OURS, Contender, add_arguments, chosen, compare
from benchmarks.workload import QUICK, SHAPES, Job, prepare

LIBGOMP = "GOMP_SPINCOUNT=300000"
"""libgomp's default, given by name so that nothing is chosen in its place."""


def under(setting: str) -> Callable[[Job, Path], list[str]]:
    """Our command line with one environment variable."""
    return lambda job, path: ["env", setting, *our_command(job, path)]


CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender("libgomp", under(LIBGOMP), quick=True),
    Contender("PASSIVE", under("OMP_WAIT_POLICY=PASSIVE"), quick=True),
    *(Contender(f"spin-{count}", under(f"GOMP_SPINCOUNT={count}")) for count in (2_000, 20_000)),
]


@contextmanager
def others(count: int) -> Iterator[None]:
    """Processes that do nothing but compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each number of other processes; exit code 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 3], help="processes that compute beside it")
    parser.add_argument("--quick", action="store_true", help="four steps, once")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args(argv)
    args.device = "cpu"
    shape = QUICK if args.quick else SHAPES["9m", "cpu"]
    args.repeats = 1 if args.quick else args.repeats
    failures = 0
    with tempfile.TemporaryDirectory(prefix="waiting-") as folder:
        weights, rows = prepare(Path(folder), shape)
        for precision in args.precision:
            job = Job(
                folder=str(weights), rows=str(rows), scratch="", result="", batch_size=shape.rows,
                seq_len=shape.seq_len, warmup=shape.warmup, steps=shape.steps, precision=precision, device="cpu",
                compile=False,
            )  # fmt: skip
            for count in args.others:
                with others(count):
                    settings = {"precision": precision, "others": count, "steps": shape.steps}
                    title = f"9m, {precision}, beside {count} processes that compute"
                    contenders = chosen(CONTENDERS, args)
                    failures += compare("waiting", "9m", contenders, job, METRICS, settings, title, args)[1]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
