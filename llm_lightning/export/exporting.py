"""Exports of one model: each is written, asked, and only then put in its place."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_lightning.errors import UserError
from llm_lightning.export.errors import RefusedError
from llm_lightning.export.manifest import MANIFEST, is_kept, manifest, num_bytes, write_manifest
from llm_lightning.export.proof.asking import Answers, OtherEngine, ask
from llm_lightning.export.proof.limits import HALF, Limits
from llm_lightning.export.proof.questions import DEFAULT_TEXT, questions
from llm_lightning.export.proof.verdict import Comparison, compare
from llm_lightning.export.source import Source, merged, read_source
from llm_lightning.export.target import Target
from llm_lightning.export.targets import TARGETS, Wanted
from llm_lightning_safety.files import atomic_folder, remove

LOCK = ".export.lock"
SCRATCH = ".export.tmp"


@dataclass(frozen=True)
class Outcome:
    """What came of one wanted export.

    Attributes:
        name: of the export and of its folder.
        size: bytes.
        comparison: None for one that could not be asked.
        refused: why it is not there; empty where it is.
        others: by the name of another program what its answers were.
    """

    name: str
    size: int
    comparison: Comparison | None
    refused: tuple[str, ...] = ()
    others: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """All outcomes, and the trained model's size and answers (None where nothing had to be asked)."""

    outcomes: list[Outcome]
    size: int
    said: dict[str, Any]


@dataclass(frozen=True)
class Proof:
    """How exports are proven.

    Args:
        text: a file, whose perplexity is measured; by default a text that comes with the package.
        text_tokens: at most so many of it.
        max_kl: in the place of the format's own limit.
        max_perplexity_increase: likewise.
    """

    text: Path | None = None
    text_tokens: int = 4096
    max_kl: float | None = None
    max_perplexity_increase: float | None = None

    def read_text(self) -> str:
        """The text; raises `UserError` where it cannot be read."""
        try:
            text = (self.text or DEFAULT_TEXT).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text {self.text}: it cannot be read as UTF-8 text: {error}") from error
        if not text.strip():
            raise UserError(f"--text {self.text} is empty.")
        return text

    def limits(self, target: Target, form: str) -> Limits:
        """Of a format."""
        return target.formats[form].with_given(self.max_kl, self.max_perplexity_increase)


def export(
    path: Path,
    wanted: Sequence[Wanted],
    output: Path,
    proof: Proof,
    tell: Callable[[str], None],
    *,
    overwrite: bool = False,
) -> Result:
    """Write a model's exports to folders in `output`, all of each or nothing; what is there already and proven is kept.

    Args:
        path: folder of a model or an adapter, or a .gguf file.
        wanted: which.
        output: the folder that gets one folder for each.
        proof: how they are proven.
        tell: prints a line.
        overwrite: put them in the place of what lies there.

    Raises:
        UserError: the model or a setting does not fit, before anything is written.
    """
    output = output.expanduser().absolute()  # what asks it runs in another folder
    source, text = read_source(path), proof.read_text()
    if proof.text_tokens < 2:
        raise UserError(f"--text_tokens {proof.text_tokens} must be at least 2.")
    plans = [_plan(source, each, proof) for each in dict.fromkeys(wanted)]
    asked = questions(source.tokenizer, text, proof.text_tokens, source.is_reward_model)
    with _alone(output):
        missing = []
        outcomes: dict[str, Outcome] = {}
        for plan in plans:
            record = is_kept(output / plan.name, source, plan.name, asked, plan.limits)
            if record is not None and not overwrite:
                tell(f"{plan.name}: there already, and proven")
                others = {name: Comparison(**found) for name, found in record["others"].items()}
                comparison = Comparison(**record["comparison"])
                outcomes[plan.name] = Outcome(plan.name, record["bytes"], comparison, others=others)
            else:
                _check_free(output / plan.name, overwrite)
                missing.append(plan)
        if missing:
            scratch = output / SCRATCH
            scratch.mkdir()
            tell("asking the trained model")
            trained = ask("transformers_answers", asked | _place(source), scratch / "trained")
            with merged(source, scratch, tell) as whole:
                for plan in missing:
                    outcomes[plan.name] = _export(whole, plan, asked, trained, output, tell, overwrite)
        size = num_bytes(source.given)
        return Result([outcomes[plan.name] for plan in plans], size, trained.said if missing else {})


@dataclass(frozen=True)
class _Plan:
    name: str
    target: Target
    form: str
    limits: Limits


def _plan(source: Source, wanted: Wanted, proof: Proof) -> _Plan:
    target = TARGETS[wanted.target]
    form = wanted.form or target.default(source)
    limits = proof.limits(target, form)
    target.check(source, form)
    target.python()
    return _Plan(f"{wanted.target}-{form}", target, form, limits)


def _place(source: Source) -> dict[str, Any]:
    return {"path": str(source.given.resolve()), "base": source.base}


def _export(
    source: Source,
    plan: _Plan,
    asked: dict[str, Any],
    trained: Answers,
    output: Path,
    tell: Callable[[str], None],
    overwrite: bool,
) -> Outcome:
    """One export, in its place only where it answers as the trained model."""
    size, comparison, others = 0, None, {}
    scratch, place = output / SCRATCH, output / plan.name
    try:
        with atomic_folder(scratch / plan.name) as folder:
            tell(f"{plan.name}: writing")
            plan.target.write(source, plan.form, folder)
            size = num_bytes(folder)
            tell(f"{plan.name}: asking it")
            asked_again = asked | {name: trained.said.get(name) for name in ("prompts", "windows")}
            place_of_answers = scratch / f"{plan.name}.answers"
            its_questions = asked_again | plan.target.questions(folder)
            answers = ask(plan.target.script, its_questions, place_of_answers, python=plan.target.python())
            unsaid = plan.target.unsaid(source)
            comparison, reasons = compare(trained, answers, asked["texts"], plan.limits, unsaid)
            for reason in dict.fromkeys(unsaid.values()):
                tell(f"{plan.name}: {reason}")
            for engine in plan.target.others(source, folder):
                tell(f"{plan.name}: asking it in {engine.name}")
                others[engine.name], more = _in_other(engine, asked_again, trained, place_of_answers, plan)
                reasons += more
            if reasons:
                raise RefusedError("; ".join(reasons))
            content = manifest(source, plan.name, asked, plan.limits, comparison, trained, answers, unsaid)
            content["others"] = {name: found.as_dict() for name, found in others.items()}
            write_manifest(folder, content)
        if overwrite:
            remove(place)
        (scratch / plan.name).replace(place)
    except UserError as error:
        tell(f"{plan.name}: refused: {error}")
        return Outcome(plan.name, size, comparison, (str(error),), others)
    return Outcome(plan.name, size, comparison, others=others)


def _in_other(
    engine: OtherEngine, asked: dict[str, Any], trained: Answers, place: Path, plan: _Plan
) -> tuple[Comparison, list[str]]:
    """As `compare`. Such a program computes and caches in half precision, whatever the weights are."""
    limits = replace(plan.limits, max_kl=max(plan.limits.max_kl, HALF.max_kl))
    answers = ask(engine.script, asked | engine.questions, place.with_suffix(f".{engine.name}"), python=engine.python)
    found, reasons = compare(trained, answers, asked["texts"], limits, engine.may_differ)
    return found, [f"in {engine.name} {reason}" for reason in reasons]


def _check_free(place: Path, overwrite: bool) -> None:
    if overwrite or not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    what = "another export, or was checked otherwise" if (place / MANIFEST).is_file() else "something else"
    raise UserError(f"{place} holds {what}: name a new folder by --output, or replace it by --overwrite.")


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """The only process that exports to a folder; what a killed one left half written is removed."""
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--output {output}: another process exports to it; wait for it, or name another folder."
        ) from error
    try:
        remove(output / SCRATCH)
        yield
    finally:
        shutil.rmtree(output / SCRATCH, ignore_errors=True)
        lock.release()
        (output / LOCK).unlink(missing_ok=True)
