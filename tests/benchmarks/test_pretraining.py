import json
from dataclasses import replace

import pytest

from benchmarks.pretraining import CONTENDERS, json_lines, measure, medians, table
from benchmarks.step_clock import StepClock
from benchmarks.workload import QUICK, Job, prepare

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def run(speed, memory=100.0):
    return {"tokens_per_s": speed, "tokens_per_cpu_s": speed / 2, "peak_memory_mb": memory, "loss": 2.0}


def test_contenders_do_the_same_work(tmp_path):
    config = QUICK.config | TINY | {"intermediate_size": 64, "vocab_size": 512}
    shape = replace(QUICK, config=config, seq_len=32, warmup=1, steps=30)
    folder, rows = prepare(tmp_path, shape)
    job = Job(
        folder=str(folder), rows=str(rows), scratch="", result="", batch_size=2, seq_len=32, warmup=1, steps=30,
        precision="32-true", device="cpu", compile=False,
    )  # fmt: skip
    contenders = {c.name: c for c in CONTENDERS}
    losses = [measure(contenders[name], job, 1)["loss"] for name in ("llm-lightning", "transformers", "bare")]
    assert losses == pytest.approx([losses[-1]] * 3, abs=1e-4)
    assert losses[-1] < 6.0  # ln 512 = 6.24: weights did move


def test_a_contender_that_fails_says_why(tmp_path):
    job = Job(
        folder=str(tmp_path / "missing"), rows="", scratch="", result="", batch_size=1, seq_len=8, warmup=1, steps=1,
        precision="32-true", device="cpu", compile=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="missing"):
        measure(next(c for c in CONTENDERS if c.name == "bare"), job, 1)


def test_clock_times_the_steps_after_the_warm_up(tmp_path):
    clock = StepClock(tmp_path / "result.json", warmup=1, steps=2)
    for _ in range(3):
        clock.tick()
    clock.report(loss=1.5)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["steps"] == 2 and figures["loss"] == 1.5 and figures["wall_s"] > 0
    assert 10 < figures["peak_memory_mb"] < 10_000


@pytest.mark.parametrize("steps", [2, 4])
def test_clock_refuses_another_number_of_steps(tmp_path, steps):
    clock = StepClock(tmp_path / "result.json", warmup=1, steps=2)
    for _ in range(steps):
        clock.tick()
    with pytest.raises(RuntimeError, match=f"{steps} steps"):
        clock.report(loss=1.0)


def test_ratios_are_of_medians():
    figures = {"llm-lightning": [run(100.0), run(300.0), run(200.0)], "bare": [run(100.0, 400.0)] * 3}
    assert medians(figures["llm-lightning"])["tokens_per_s"] == 200.0
    last = table("title", figures).splitlines()[-1]
    assert last.startswith("bare") and "2.00x" in last and "0.25x" in last


def test_json_has_one_object_a_metric():
    units = {"tokens_per_s": "tokens/s", "tokens_per_cpu_s": "tokens/s", "peak_memory_mb": "MB", "loss": "nats"}
    lines = [json.loads(line) for line in json_lines("9m", {"bare": [run(1.0), run(3.0)]}, units, {"threads": 1})]
    assert [line["metric"] for line in lines] == list(units)
    assert lines[0]["value"] == 2.0 and lines[0]["settings"] == {"threads": 1, "values": [1.0, 3.0]}
