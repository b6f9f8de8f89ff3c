"""What a run achieved, in a few numbers."""

import math
from typing import Any

import numpy as np

from llm_lightning.report.chart import Chart, Line, draw
from llm_lightning.report.metrics import Metrics
from llm_lightning.report.run_folder import Run
from llm_lightning.report.safety import in_short
from llm_lightning.report.settings import NOTHING, shown

STATISTICS = {
    "data/num_tokens": ("tokens of an epoch", "{:,.0f}"),
    "data/num_dropped": ("tokens dropped", "{:,.0f}"),
    "data/padded_share": ("padding", "{:.2%}"),
    "data/trained_share": ("tokens in the loss", "{:.1%}"),
    "data/too_long_share": ("longer than a row", "{:.1%}"),
}

SCHEMES = {
    "perplexity": "perplexity", "kl": "KL", "top_token_agreement": "same top token", "disk_bytes": "MB on disk",
    "memory_bytes": "MB in memory", "prefill_tokens_per_s": "prefill tokens/s",
    "decode_tokens_per_s": "decode tokens/s",
}  # fmt: skip

Figures = dict[str, str]


def state(run: Run) -> str:
    """How far it came."""
    step = _last_step(run)
    planned = run.settings.get("trainer.max_steps")
    if run.is_finished:
        return "finished"
    if step is None:
        return "no step logged yet"
    if isinstance(planned, int) and planned > 0:
        return f"not finished: step {step:,} of {planned:,}"
    return f"not finished: step {step:,}"


def figures(run: Run) -> Figures:
    """Labelled numbers, those that the run has; the best validation by `val/reward` where there is one."""
    found: Figures = {"safety": in_short(run.safety)} if run.safety else {}
    if run.metrics is None:
        return found
    step = _last_step(run)
    found["steps"] = "" if step is None else f"{step:,}"
    found["tokens"] = number(run.metrics.last("tokens"))
    names = (("train loss", "train/loss"), ("train reward", "train/reward"))
    found |= {label: number(run.metrics.last(name)) for label, name in names}
    for name, highest in (("reward", True), ("loss", False), ("accuracy", True)):
        if best := run.metrics.best(f"val/{name}", highest):
            found[f"best val {name}"] = f"{number(best[0])}{_interval(run.metrics, name, best[1])} at step {best[1]:,}"
    for label, name in (("val perplexity", "val/perplexity"), ("val bits per byte", "val/bits_per_byte")):
        if best := run.metrics.best(name):
            found[f"best {label}"] = number(best[0])
    found["KL to the reference"] = number(run.metrics.last("train/kl"))
    speed, memory = (run.metrics.curve(f"throughput/{name}")[1] for name in ("tokens_per_s", "memory_mb"))
    found["tokens/s (median)"] = number(float(np.median(speed))) if len(speed) else ""
    found["memory"] = f"{memory.max():,.0f} MB" if len(memory) else ""
    skipped = run.metrics.last("train/skipped_steps")
    found["skipped steps"] = number(skipped) if skipped else ""
    return {label: value for label, value in found.items() if value}


def statistics(run: Run) -> list[tuple[str, str]]:
    """What the run logged of its data."""
    if run.metrics is None:
        return []
    values = {name: run.metrics.last(name) for name in run.metrics.columns if name.startswith("data/")}
    rows = []
    for name, value in values.items():
        label, form = STATISTICS.get(name, (name.removeprefix("data/").replace("_", " "), "{:,.6g}"))
        if value is not None:
            rows.append((label, form.format(value)))
    return rows


def number(value: Any) -> str:
    """As a person writes it; a dash for what is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def energy(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What the run cost, by what `energy.json` holds."""
    rows = [("energy", f"{number(report.get('joules'))} J" if report.get("joules") is not None else "not measured")]
    rows += [
        (label, f"{number(report.get(name))} {unit}".rstrip())
        for label, name, unit in (
            ("in kWh", "kwh", "kWh"), ("per token", "joules_per_token", "J"), ("time", "seconds", "s"),
            ("cost", "cost", shown(report.get("currency"))),
        )
        if report.get(name) is not None
    ]  # fmt: skip
    rows.append(("from", shown(report.get("source"))))
    devices = report.get("devices")
    for name, device in devices.items() if isinstance(devices, dict) else ():
        if isinstance(device, dict):
            rows.append((name, f"{number(device.get('joules'))} J, {shown(device.get('source'))}"))
    missing = report.get("missing")
    rows += [("no counter", shown(each)) for each in (missing if isinstance(missing, list) else ())]
    return rows


def schemes(quantization: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Columns and rows of what quantization measured; empty for a file that is not as the callback writes it."""
    candidates = quantization.get("schemes")
    given = {"original": quantization.get("original"), **(candidates if isinstance(candidates, dict) else {})}
    measured = {name: each for name, each in given.items() if isinstance(each, dict)}
    columns = [key for key in SCHEMES if any(each.get(key) is not None for each in measured.values())]
    rows = [(name, [_scheme_value(key, each.get(key)) for key in columns]) for name, each in measured.items()]
    return [SCHEMES[key] for key in columns], rows


def reliability_chart(reliability: dict[str, Any]) -> Chart | None:
    """How often a reward model is right, by how sure it is; None for a file that is not as the callback writes it."""
    bins = [reliability.get(name) for name in ("confidence", "accuracy")]
    if not all(isinstance(each, list) and 0 < len(each) <= 1000 for each in bins) or len(bins[0]) != len(bins[1]):  # type: ignore[arg-type]
        return None
    try:
        x, y = (np.asarray(each, float) for each in bins)
    except (TypeError, ValueError):
        return None
    if not all(((values >= 0) & (values <= 1)).all() for values in (x, y)):
        return None
    ideal = np.array([0.5, 1.0])
    lines = [Line("calibrated", ideal, ideal, 2, "faint"), Line("model", x, y, 0, "dotted", "right")]
    return draw("right, by confidence", "probability given to the choice", lines, x_from=0.5)


def _interval(metrics: Metrics, name: str, step: int) -> str:
    """Of a validation's metric that was logged with one."""
    limits = []
    for end in ("low", "high"):
        steps, y = metrics.curve(f"val/{name}_{end}", over_tokens=False)
        limits += y[steps == step].tolist()
    return f" ({number(limits[0])} to {number(limits[1])})" if len(limits) == 2 else ""


def _last_step(run: Run) -> int | None:
    return int(run.metrics.steps[-1]) if run.metrics is not None and len(run.metrics.steps) else None


def _scheme_value(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return NOTHING
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.1f}"
    return f"{value:.1%}" if key == "top_token_agreement" else number(value)
