"""Folders of evaluations, as `llm-lightning evaluate` leaves them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from llm_lightning.measuring.statistics import bootstrap_interval, wilson_interval


def write_evaluation(
    folder: Path, tasks: dict[str, np.ndarray], *, clusters: list[str] | None = None, metric: str = "acc", **fields: Any
) -> Path:
    """Write an evaluation in which each item of each task has the given score; returns the folder."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    results = {}
    for name, scores in tasks.items():
        results[name] = task_results(scores, metric)
        rows += [
            {
                "task": name, "item": i, "item_hash": f"{name}-{i:05d}", "cluster": clusters and clusters[i],
                "metric": metric, "reading": "none", "value": float(score), "answer": "A", "parsed": "A",
                "truncated": False, "num_tokens": 1, "contaminated": None,
            }
            for i, score in enumerate(scores)
        ]  # fmt: skip
    content = {
        "format": 1, "created": "2026-11-29T15:00:00", "command": ["llm-lightning", "evaluate", "MODEL"],
        "model": {"path": "model/best", "fingerprint": "0123"}, "step": None, "tokens": None,
        "settings": {"num_fewshot": 0, "limit": None, "chat_template": True, "system_prompt": None, "seed": 0},
        "tasks": results,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content | fields))
    schema = pa.schema(
        [
            ("task", pa.string()), ("item", pa.int64()), ("item_hash", pa.string()), ("cluster", pa.string()),
            ("metric", pa.string()), ("reading", pa.string()), ("value", pa.float64()), ("answer", pa.string()),
            ("parsed", pa.string()), ("truncated", pa.bool_()), ("num_tokens", pa.int64()),
            ("contaminated", pa.bool_()),
        ]
    )  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows, schema), folder / "items.parquet")
    return folder


def task_results(scores: np.ndarray, metric: str = "acc") -> dict[str, Any]:
    is_share = np.isin(scores, (0, 1)).all()
    low, high = wilson_interval(scores.sum(), len(scores)) if is_share else bootstrap_interval(scores)
    score = {
        "metric": metric, "reading": "none", "value": float(scores.mean()), "low": low, "high": high,
        "interval": "wilson" if is_share else "bootstrap", "higher_is_better": True, "unparsed": 2,
        "clean": None,
    }  # fmt: skip
    return {
        "num_items": len(scores), "version": 1, "output": "multiple_choice", "first_prompt": "Question: <b>2 + 2</b>?",
        "max_new_tokens": None, "truncated": 3, "contaminated": 0, "too_short": 0,
        "scores": [score],
    }  # fmt: skip


def change_results(folder: Path, change: Any) -> None:
    path = folder / "results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
