"""`python -m tests.datamodules.fuzz [--minutes 60] [--seed 0]`: cases without end, each fault with its seed."""

import argparse
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.datamodules.fuzz.cases import Case, check
from tests.datamodules.fuzz.tokenizers import save_tokenizer


def main() -> int:
    """Exit code 1 where something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--most", type=int, default=20, help="faults of one kind that are shown")
    args = parser.parse_args()
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tokenizer = save_tokenizer(Path(folder))
        end, seed = time.monotonic() + 60 * args.minutes, args.seed
        while time.monotonic() < end:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                case = Case.of(seed)
                try:
                    results[check(case, tokenizer, Path(own))] += 1
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    fault = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                    results[fault] += 1
                    if results[fault] <= args.most:
                        print(f"seed {seed} ({case}): {fault}: {str(error)[:400]}", flush=True)
            seed += 1
    print(f"{seed - args.seed:,} cases: {dict(results.most_common())}")
    return int(any(name not in ("read", "refused") for name in results))


if __name__ == "__main__":
    raise SystemExit(main())
