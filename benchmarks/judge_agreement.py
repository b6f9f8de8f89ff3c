"""How often a language model, asked as a judge, agrees with preferences, and what it favours instead.

    python benchmarks/judge_agreement.py --judge SmolLM2-135M-Instruct --data dpo_en_demo.json --json results.jsonl

The data are LLaMA-Factory's demonstration pairs of DPO: conversations of one question with a chosen and a rejected
response. Nothing is trained: this is what `llm_lightning.rewards.Judge` measures before training.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import machine
from llm_lightning.rewards import Agreement, Judge, Rubric
from llm_lightning.rewards.judge.judge import Comparison
from llm_lightning.rollouts import LocalEngine

CRITERIA = ["It answers what was asked, and is right.", "It is clear, and helps whoever asks."]


def single_questions(path: Path, most_characters: int) -> list[dict[str, str]]:
    """The pairs with one question, none of whose texts is longer."""
    rows = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        texts = [record["conversations"][0]["value"], record["chosen"]["value"], record["rejected"]["value"]]
        if len(record["conversations"]) == 1 and max(map(len, texts)) <= most_characters:
            rows.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="model folder or hub id")
    parser.add_argument("--data", required=True, type=Path, help="dpo_en_demo.json of LLaMA-Factory")
    parser.add_argument("--num-pairs", type=int, default=100)
    parser.add_argument("--most-characters", type=int, default=1200, help="of each text; longer pairs are left out")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="of a reply")
    parser.add_argument("--only", nargs="+", choices=get_args(Comparison), default=list(get_args(Comparison)))
    parser.add_argument("--quick", action="store_true", help="eight pairs")
    parser.add_argument("--json", type=Path, help="append a line for each comparison")
    given = parser.parse_args()
    rows = single_questions(given.data, given.most_characters)[: 8 if given.quick else given.num_pairs]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for comparison in given.only:
            engine = LocalEngine(given.judge, num_slots=16)
            agreement = Agreement(str(pairs), least=0.0, num_pairs=len(rows))
            judge = Judge(engine, Rubric(CRITERIA), agreement, comparison, max_new_tokens=given.max_new_tokens)
            began = time.process_time()
            print(f"{comparison}:", flush=True)
            judge.prepare(None, print)
            assert judge.measured is not None
            write(given, comparison, judge.measured.as_dict(), time.process_time() - began)


def write(given: argparse.Namespace, comparison: str, measured: dict[str, Any], seconds: float) -> None:
    """A line of JSON; `seconds` of the processor."""
    line = {
        "benchmark": "judge_agreement", "contender": "llm-lightning", "model": Path(given.judge).name,
        "metric": "accuracy", "value": measured["accuracy"], "unit": "share", "measured": measured,
        "settings": {"comparison": comparison, "max_new_tokens": given.max_new_tokens, "cpu_seconds": round(seconds)},
        **machine("cpu"),
    }  # fmt: skip
    if given.json is not None:
        with given.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
