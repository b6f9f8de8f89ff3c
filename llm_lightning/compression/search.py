"""Prunings and quantization schemes in combination: all are trained and measured, and the best within a budget is kept.

Each pruning is a run of `fit`, and so is its quantization, in a folder and a process of their own: they are stopped,
resumed and found to be finished as any other run.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callbacks.artifacts.model_folder import swap_in
from callbacks.quantization.choice import CompressionBudget, Measured
from callbacks.quantization.trial import MANIFEST
from llm_lightning.compression.front import Candidate, as_text, draw, front
from llm_lightning.errors import UserError
from llm_lightning.process.child import run_child
from llm_lightning_safety.files import write_text

ORIGINAL = "original"
DONE = ".quantized.json"


@dataclass(frozen=True)
class CompressionSearch:
    """What is tried.

    Args:
        fit_args: Arguments of `fit` that all runs share.
        root: The folder of the search; `NAME/train` and `NAME/quantize` in it are the runs of a pruning.
        prunings: By name the settings of `Pruning`; None for the network that is not pruned.
        quantization: The settings of `Quantization`.
        budget: What these settings allow.
        has_adapter: Whether an adapter is trained.
    """

    fit_args: list[str]
    root: Path
    prunings: Mapping[str, Mapping[str, Any] | None]
    quantization: Mapping[str, Any]
    budget: CompressionBudget
    has_adapter: bool

    def check(self) -> None:
        """Raise `UserError` where there is nothing to compare with."""
        unpruned = [name for name, settings in self.prunings.items() if settings is None]
        if len(unpruned) != 1:
            raise UserError(
                f"compress.prunings: {len(unpruned)} of {', '.join(self.prunings) or 'none'} are null, and one has to "
                "be: the network that is not pruned, which the others are compared with."
            )
        for name in self.prunings:
            if not name or "/" in name or name.startswith("."):
                raise UserError(f"compress.prunings: {name!r} cannot be the name of a folder.")
        if self.budget == CompressionBudget():
            raise UserError(
                "compress.quantization has no limit to choose by: give max_perplexity_increase, max_perplexity, "
                "max_megabytes or min_tokens_per_s."
            )

    def run(self) -> int:
        """Run what is missing, then choose; returns the exit code of the first run that did not end well, else 0."""
        candidates: list[Candidate] = []
        budget, reference = self.budget, None
        for name in sorted(self.prunings, key=lambda name: self.prunings[name] is not None):
            if code := self._train(name) or self._quantize(name, budget):
                return code
            candidates += self._candidates(name)
            if reference is None:
                reference = candidates[0].measured
                budget = _without_reference(budget, reference)
        assert reference is not None
        self._finish(candidates, reference)
        return 0

    def _train(self, name: str) -> int:
        settings = self.prunings[name]
        words = [f"--trainer.default_root_dir={self._folder(name) / 'train'}"]
        if settings is not None:
            words.append(_with_callback(settings))
        print(f"\nTraining: {name}", flush=True)
        return run_child(["fit", *self.fit_args, *words], self._environment(name, "train"))

    def _quantize(self, name: str, budget: CompressionBudget) -> int:
        """Quantize and measure the network of a pruning, where these settings have not done it."""
        trained, folder = self._trained(name), self._folder(name) / "quantize"
        limits = {"max_perplexity_increase": budget.perplexity_increase, "max_perplexity": budget.perplexity}
        settings = {**self.quantization, "init_args": {**self.quantization["init_args"], **limits}}
        stamp = json.dumps({"settings": settings, "network": _state_of(trained)}, default=str)
        done = folder / DONE
        if done.exists() and done.read_text() == stamp:
            return 0
        print(f"\nQuantizing: {name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        words = [_with_callback(settings), f"--trainer.default_root_dir={folder}", "--trainer.max_steps=0"]
        words.append(f"--model.backbone.path={trained}")
        if self.has_adapter:
            words.append("--model.peft=null")
        code = run_child(["fit", *self.fit_args, *words], self._environment(name, "quantize"))
        if not code:
            write_text(done, stamp)
        return code

    def _candidates(self, name: str) -> list[Candidate]:
        """The network of a pruning, unquantized first."""
        folder, trained = self._folder(name) / "quantize", self._trained(name)
        report = json.loads((folder / "quantization.json").read_text())
        quantized = folder / "model" / "quantized"
        whole = trained if (trained / "config.json").exists() else None
        found = [Candidate(name, ORIGINAL, Measured.from_dict(ORIGINAL, report["original"]), whole)]
        for scheme, figures in report["schemes"].items():
            place = quantized if scheme == report["kept"] and (quantized / MANIFEST).exists() else None
            found.append(Candidate(name, scheme, Measured.from_dict(scheme, figures), place))
        return found

    def _finish(self, candidates: list[Candidate], reference: Measured) -> None:
        """Keep the best one as `model/compressed`; write the table and the picture."""
        chosen = self.budget.choose([each.measured for each in candidates if each.folder is not None], reference)
        kept = next((each for each in candidates if each.measured is chosen), None)
        place = self.root / "model" / "compressed"
        if kept is None or kept.folder is None:
            shutil.rmtree(place, ignore_errors=True)  # an earlier search's must not be taken for this one's
        else:
            fresh = place.with_name(".compressing")
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(kept.folder, fresh)
            swap_in(fresh, place)
        best = front(candidates)
        rows = [
            {
                "pruning": each.pruning,
                "scheme": each.scheme,
                "kept": each is kept,
                "on_front": each in best,
                "refusal": self.budget.refusal(each.measured, reference) or None,
                **each.measured.as_dict(),
            }
            for each in candidates
        ]
        write_text(self.root / "compression.json", json.dumps(rows, indent=2) + "\n")
        draw(self.root / "compression.png", candidates, kept)
        print("\n" + as_text(candidates, reference, self.budget, kept))
        told = "No network holds the budget." if kept is None else f"Kept: {kept.pruning}, {kept.scheme}, in {place}."
        print(f"{told} The picture: {self.root / 'compression.png'}", flush=True)

    def _folder(self, name: str) -> Path:
        return self.root / name

    def _trained(self, name: str) -> Path:
        return self._folder(name) / "train" / "model" / "last"

    def _environment(self, name: str, what: str) -> dict[str, str]:
        """W&B shows the runs as one group."""
        names = {"WANDB_RUN_GROUP": self.root.name, "WANDB_NAME": f"{self.root.name}-{name}-{what}"}
        return names | os.environ


def _with_callback(settings: Mapping[str, Any]) -> str:
    return f"--config={json.dumps({'trainer': {'callbacks+': [settings]}})}"


def _without_reference(budget: CompressionBudget, reference: Measured) -> CompressionBudget:
    """The same limits for a run whose own original is not what they are relative to."""
    if budget.perplexity_increase is None:
        return budget
    limits = [reference.quality.perplexity * (1 + budget.perplexity_increase)]
    limits += [] if budget.perplexity is None else [budget.perplexity]
    return replace(budget, perplexity_increase=None, perplexity=min(limits))


def _state_of(folder: Path) -> dict[str, int]:
    """Changes where a model folder is written anew."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))}
