"""Every export of one model: how near it is to the model, how large, and how fast on this machine.

`python benchmarks/export.py MODEL [TARGET[:FORMAT] ...]` exports to a temporary folder and prints the command's table.
The comparisons go to `benchmarks/results/export.jsonl`. Targets whose environment is missing are named and left out:
see `llm-lightning export --make`. One thread, unless OMP_NUM_THREADS says otherwise.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.export import TARGETS, Proof, Wanted, export
from llm_lightning.export.proof.table import table

RESULTS = Path(__file__).parent / "results" / "export.jsonl"
NO_LIMIT = 1e9
"""What is measured here is how far each export is, not whether that is too far."""


def installed(words: list[str]) -> list[Wanted]:
    """Those of the exports, by default all, whose environment is there."""
    named = words or [f"{name}:{form}" for name, target in TARGETS.items() for form in target.formats]
    found = []
    for word in named:
        wanted = Wanted.parse(word)
        try:
            TARGETS[wanted.target].python()
        except UserError as error:
            print(f"{word} is left out: {error}")
            continue
        found.append(wanted)
    return found


def main(words: list[str]) -> int:
    """Measure, and keep the results."""
    if not words:
        print(__doc__)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model, *targets = words
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(max_kl=NO_LIMIT, max_perplexity_increase=NO_LIMIT)
        result = export(Path(model), installed(targets), Path(folder) / "exports", proof, print)
    rows = []
    with RESULTS.open("a", encoding="utf-8") as file:
        for each in result.outcomes:
            found = {} if each.comparison is None else {"": each.comparison}
            for engine, comparison in (found | dict(each.others)).items():
                name = f"{each.name} in {engine}" if engine else each.name
                rows.append((name, each.size, comparison))
                row = {"model": Path(model).name, "export": name, "bytes": each.size, "machine": platform.machine()}
                file.write(json.dumps(row | comparison.as_dict()) + "\n")
    print(table(rows, (result.size, result.said)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
