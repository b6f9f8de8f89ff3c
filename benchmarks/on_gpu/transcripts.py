"""Pairs of transcripts, in the form of hh-rlhf's, of the documentation of the running Python: they are for speed alone.

Run as `python -m benchmarks.on_gpu.transcripts FILE`.
"""

import itertools
import json
import random
import sys
from pathlib import Path

NUM_PAIRS = 400


def main(path: Path) -> None:
    from datamodules.corpora.python_docs import documents

    rng = random.Random(0)
    texts = [text.replace("\n\n", "\n") for text in itertools.islice(documents(), NUM_PAIRS) if len(text) > 80]
    with path.open("w") as file:
        for text in texts:
            cut = min(rng.randint(40, 600), len(text) // 2)
            asked = f"\n\nHuman: {text[:cut]}\n\nAssistant: "
            chosen, rejected = text[cut : cut + rng.randint(60, 700)], rng.choice(texts)[: rng.randint(60, 700)]
            file.write(json.dumps({"chosen": asked + chosen, "rejected": asked + rejected}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
