"""What a safety gate found, by what `safety.json` holds; it may be a stranger's."""

from typing import Any

from llm_lightning.report.settings import NOTHING, shown

COLUMNS = ["before", "after", "change", "95 % interval", "p, corrected", "verdict", "detectable", "items"]


def safety(report: dict[str, Any]) -> dict[str, Any]:
    """For the template: the verdict, the tests as a table, what they rest on, and what a judge was asked."""
    changes = [each for each in _list(report.get("changes")) if isinstance(each, dict)]
    prompts = report.get("judge_prompts")
    return {
        "verdict": shown(report.get("verdict")),
        "step": report.get("step"),
        "is_worse": bool(report.get("worse")),
        "columns": COLUMNS,
        "rows": [(shown(each.get("name")), _cells(each)) for each in changes],
        "notes": _notes(report),
        "prompts": prompts if isinstance(prompts, dict) else {},
    }


def in_short(report: dict[str, Any]) -> str:
    """For the run's figures."""
    worse = [shown(each) for each in _list(report.get("worse"))]
    return f"worse: {', '.join(worse)}" if worse else "no worse shown"


def _cells(change: dict[str, Any]) -> list[str]:
    low, high, left_out = change.get("low"), change.get("high"), change.get("num_left_out")
    items = shown(change.get("num_items"))
    return [
        _percent(change.get("before")),
        _percent(change.get("after")),
        _points(change.get("difference")),
        NOTHING if low is None or high is None else f"{_points(low)} to {_points(high)}",
        f"{_p(change.get('corrected_p'))} ({shown(change.get('test'))})",
        shown(change.get("outcome")) if change.get("outcome") else "no change shown",
        _percent(change.get("smallest")),
        f"{items}, {shown(left_out)} left out" if left_out else items,
    ]


def _notes(report: dict[str, Any]) -> list[str]:
    judged, unreadable = report.get("judged_by"), report.get("unreadable")
    judges = sorted({shown(each) for each in judged.values() if each}) if isinstance(judged, dict) else []
    notes = [f"Answers were judged by {' and '.join(judges)}."] if judges else []
    if isinstance(unreadable, dict):
        notes += [
            f"{name}: {shown(count)} verdicts could not be read, and are left out."
            for name, count in unreadable.items()
        ]
    if different := _list(report.get("asked_differently")):
        names = ", ".join(map(shown, different))
        notes.append(f"Before and after were asked in two ways, which may be all the difference: {names}.")
    for check in _list(report.get("checks")):
        if isinstance(check, dict):
            worse = ", ".join(map(shown, _list(check.get("worse")))) or "nothing shown to be worse"
            notes.append(f"In the course of training, step {shown(check.get('step'))}: {worse}.")
    return notes


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if _is_number(value) else NOTHING


def _points(value: Any) -> str:
    return f"{100 * value:+.1f}" if _is_number(value) else NOTHING


def _p(value: Any) -> str:
    return NOTHING if not _is_number(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
