import json

from benchmarks.runner import Metric, json_lines, medians, table

METRICS = [
    Metric("tokens_per_s", "tokens/s", "tokens/s", 10),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
    Metric("loss", "nats", "loss", 9, ".4f"),
]


def run(speed, memory=100.0):
    return {"tokens_per_s": speed, "peak_memory_mb": memory, "loss": 2.0}


def test_ratios_are_of_medians():
    figures = {"llm-lightning": [run(100.0), run(300.0), run(200.0)], "bare": [run(100.0, 400.0)] * 3}
    assert medians(figures["llm-lightning"])["tokens_per_s"] == 200.0
    title, header, ours, bare = table("title", figures, METRICS).splitlines()
    assert title == "title" and header.split()[:4] == ["tokens/s", "min", "-", "max"]
    assert ours.split() == ["llm-lightning", "200", "100", "-", "300", "100", "2.0000", "1.00x", "1.00x"]
    assert bare.startswith("bare") and "2.00x" in bare and "0.25x" in bare


def test_without_ours_there_are_no_ratios():
    assert "ours" not in table("title", {"bare": [run(1.0)]}, METRICS)


def test_json_has_one_object_a_metric():
    figures = {"bare": [run(1.0), run(3.0)]}
    lines = [json.loads(line) for line in json_lines("pretraining", "9m", figures, METRICS, {"threads": 1})]
    assert [line["metric"] for line in lines] == ["tokens_per_s", "peak_memory_mb", "loss"]
    assert lines[0] == {
        "benchmark": "pretraining", "contender": "bare", "model": "9m", "metric": "tokens_per_s", "value": 2.0,
        "unit": "tokens/s", "settings": {"threads": 1, "values": [1.0, 3.0]},
    }  # fmt: skip
