"""A run's settings: flat, in short, and those in which runs differ."""

from collections.abc import Iterator, Sequence
from typing import Any

MOST_SETTINGS = 5_000
DEEPEST = 30
LONGEST_VALUE = 500
"""Characters of a value that a table shows."""

PLACES = ("trainer.default_root_dir", "resume", "ckpt_path")
"""Where a run lies and how it was started, which is no difference between runs."""

NOTHING = "\N{EN DASH}"

DEFAULTS: tuple[Any, ...] = (None, [], {}, "")

Settings = dict[str, Any]


def flat(config: Any) -> Settings:
    """Settings by dotted name, without the `init_args` and `class_path` that jsonargparse puts between: a class stands
    under the name of what it is given to.

    At most 5,000, as a stranger's YAML can refer to itself a thousandfold.
    """
    found: Settings = {}
    for name, value in _leaves("", config, 0):
        found[name] = value
        if len(found) >= MOST_SETTINGS:
            break
    return found


def differing(runs: Sequence[Settings]) -> list[tuple[str, list[str]]]:
    """Names of settings that are not the same in all runs, with each run's value."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    rows = [(name, [shown(run.get(name)) for run in runs]) for name in names if name not in PLACES]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        text = ", ".join(shown(each) for each in value[:50])
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"


def of_data(settings: Settings) -> list[tuple[str, str]]:
    """What the DataModule was told, apart from what was left at nothing."""
    rows = [(name.removeprefix("data."), value) for name, value in settings.items() if name.startswith("data.")]
    return [(name, shown(value)) for name, value in rows if value not in DEFAULTS]


def in_short(settings: Settings) -> list[tuple[str, str]]:
    """The settings that tell runs apart, one labelled line for each that there is."""
    found = {name: shown(value) for name, value in settings.items() if value not in DEFAULTS}
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    config = "model.backbone.config"
    sizes = [f"{name} {found[f'{config}.{name}']}" for name in shape if f"{config}.{name}" in found]
    network = found.get("model.backbone.path") or _joined(found.get(config), *sizes)
    optimizer = _joined(found.get("model.optimizer"), _named(found, "lr", "model.optimizer.lr"))
    rows = [
        ("stage", found.get("model")),
        ("network", network),
        ("adapter", _joined(found.get("model.peft"), _named(found, "rank", "model.peft.r"))),
        ("data", _joined(found.get("data"), found.get("data.path") or found.get("data.data.path"))),
        ("tokenizer", found.get("tokenizer")),
        ("optimizer", optimizer),
        ("schedule", _joined(found.get("model.schedule.kind"), _named(found, "warmup", "model.schedule.warmup"))),
        ("rows", _joined(_named(found, "seq_len", "data.seq_len"), _named(found, "batch_size", "data.batch_size"))),
        ("max_steps", found.get("trainer.max_steps") if found.get("trainer.max_steps") != "-1" else None),
        ("max_epochs", found.get("trainer.max_epochs") if found.get("trainer.max_epochs") != "-1" else None),
        ("precision", found.get("trainer.precision")),
        ("strategy", _joined(found.get("trainer.strategy"), _named(found, "devices", "trainer.devices"))),
        ("seed", found.get("seed_everything")),
    ]
    return [(label, value) for label, value in rows if value]


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > DEEPEST:
        return
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield name, value["class_path"].rsplit(".", 1)[-1]
        for key, inner in value.items():
            if key != "class_path":
                yield from _leaves(name if key == "init_args" else f"{name}.{key}".lstrip("."), inner, depth + 1)
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for i, inner in enumerate(value):
            yield from _leaves(f"{name}.{i}", inner, depth + 1)
    else:
        yield name, value


def _joined(*words: str | None) -> str | None:
    given = [word for word in words if word]
    return ", ".join(given) if given else None


def _named(found: dict[str, str], label: str, name: str) -> str | None:
    return f"{label} {found[name]}" if name in found else None
