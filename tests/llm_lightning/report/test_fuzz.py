"""Whatever stands in a run folder, a report of it is written, or refused in words."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llm_lightning.errors import UserError
from llm_lightning.report.page import write_report
from tests.llm_lightning.evaluation.folders import write_evaluation
from tests.llm_lightning.report.folders import CONFIG, CURVE, METRICS, SAFETY, SCHEME, write_run

ODD: list[Any] = [
    None, True, -1, 0, 10**30, 10**400, -(10**400), 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", "x",
    "1" * 5000, "\ud83d", "\0", "<b>", "{{ 7 }}", [], [1], [[]], {}, {"a": {}}, {"init_args": 3, "class_path": []},
    [{"class_path": "A.b"}],
]  # fmt: skip
RELIABILITY = {"confidence": [0.6, 0.9], "accuracy": [0.5, 0.8], "num_pairs": [3, 4], "ece": 0.1}
QUANTIZATION = {"kept": "a", "original": SCHEME, "schemes": {"a": SCHEME}}
ENERGY = {
    "joules": 3.0, "kwh": 1e-6, "joules_per_token": 0.1, "cost": 2.0, "currency": "EUR", "seconds": 3.0,
    "source": "measured by RAPL", "missing": ["NVML"], "devices": {"package-0": {"joules": 3.0, "source": "RAPL"}},
}  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """The same, with an odd value in one place."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        places = list(value) if isinstance(value, dict) else range(len(value))
        place = chance.choice(list(places))
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[place] = mutated(value[place], chance)
        return copy
    return chance.choice(ODD)


def mutated_table(text: str, chance: random.Random) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(3):
        row = chance.choice(rows)
        row[chance.randrange(len(row))] = str(chance.choice(ODD)).replace("\ud83d", "").replace(",", ";")
    return "\n".join(map(",".join, rows)) + "\n"


def mutated_run(folder: Path, chance: random.Random) -> Path:
    values = {
        "quantization_json": QUANTIZATION, "reliability_json": RELIABILITY, "energy_json": ENERGY,
        "safety_json": SAFETY, "curve_json": CURVE,
    }  # fmt: skip
    files = {name: json.dumps(mutated(value, chance)) for name, value in values.items()}
    run = write_run(
        folder,
        config_yaml=yaml.safe_dump(mutated(CONFIG, chance)),
        metrics_csv=mutated_table(METRICS, chance),
        **files,
    )
    (run / "samples" / "rollouts-000030.jsonl").write_text(json.dumps(mutated({"prompt": "a", "reward": 1.0}, chance)))
    scores = np.linspace(0, 1, 7)
    scores[chance.randrange(7)] = chance.choice([np.nan, np.inf, 1e308, -1e308, 0.5])
    evaluation = write_evaluation(run / "evaluation" / "last", {"f1": scores})
    results = evaluation / "results.json"
    results.write_text(json.dumps(mutated(json.loads(results.read_text()), chance)))
    return run


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("seed", range(60))
def test_odd_values_stop_no_report(tmp_path, seed):
    chance = random.Random(seed)
    runs = [mutated_run(tmp_path / name, chance) for name in ("one", "two")]
    try:
        write_report(runs, tmp_path / "report.html")
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert "</html>" in (tmp_path / "report.html").read_text()
