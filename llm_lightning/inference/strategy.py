"""How `llm-lightning evaluate` lets a model answer: settings of `generate`, from the same files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from datamodules.encoding.prompts import merged
from datamodules.synthetic.identity import settings_of
from llm_lightning.errors import UserError
from llm_lightning.inference.choices import Choice, FirstSample
from llm_lightning.inference.judging import Judging
from llm_lightning.messages import readable
from llm_lightning.rewards import Reward, score
from llm_lightning.rollouts.adaptation import Adaptation
from llm_lightning.rollouts.sampling import Sampling
from llm_lightning.rollouts.thinking import Thinking
from llm_lightning.settings.shipped import find_config
from llm_lightning_safety.redaction import remember

PROMPTS_AT_ONCE = 64  # whose answers a reward sees in one call


@dataclass(frozen=True)
class Strategy:
    """See `llm_lightning.evaluation.writing`.

    Args:
        num_samples: texts that are written to each prompt.
        temperature: divides the logits; by default the task's for one sample, 0.8 for several.
        top_p: share of the probability that tokens are drawn from; by default the task's for one sample, 0.95 for
            several.
        max_new_tokens: of an answer; by default the task's.
        thinking: a budget for the thoughts before an answer.
        adaptation: learning from the texts whose likelihood is asked for, while they are read.
        rewards: by name; they see what the task has of an item as columns.
        choices: by name; the first one counts.
    """

    num_samples: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    thinking: Thinking | None = None
    adaptation: Adaptation | None = None
    rewards: Mapping[str, Reward] | None = None
    choices: Mapping[str, Choice] | None = None

    @property
    def judging(self) -> Judging:
        """Rewards and choices."""
        return Judging(self.rewards or {}, self.choices or {"first": FirstSample()})

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if self.num_samples < 1:
            raise UserError(f"num_samples={self.num_samples} must be at least 1.")
        self.drawn(Sampling()).check("strategy")
        if self.temperature == 0 and self.num_samples > 1:
            raise UserError(
                f"temperature=0 writes the same answer num_samples={self.num_samples} times: raise it, or take one "
                "sample."
            )
        if self.thinking is not None:
            self.thinking.check("thinking")
        if self.adaptation is not None:
            self.adaptation.check("adaptation")
        self.judging.check()

    def drawn(self, sampling: Sampling) -> Sampling:
        """See `llm_lightning.evaluation.writing`."""
        if self.num_samples > 1:
            sampling = replace(sampling, temperature=0.8, top_p=0.95, top_k=0)
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "max_new_tokens")}
        return replace(sampling, **{name: value for name, value in given.items() if value is not None})

    def choose(
        self, prompts: Sequence[Any], texts: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """See `llm_lightning.evaluation.writing`.

        Raises:
            UserError: no answer is found in any text, or a reward fails.
        """
        judging, chosen = self.judging, list[int]()
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = range(first, min(first + PROMPTS_AT_ONCE, len(prompts)))
            flat = [text for number in part for text in texts[number]]
            if not first:
                judging.check_readers(flat)
            owners = [number for number in part for _ in texts[number]]
            columns = merged([dict(docs[owner]) for owner in owners])
            given = score(judging.rewards, [prompts[owner] for owner in owners], flat, columns)
            for number in part:
                places = [place for place, owner in enumerate(owners) if owner == number]
                own = {name: [values[place] for place in places] for name, values in given.items()}
                chosen.append(judging.choose(texts[number], own))
        return chosen

    def as_settings(self) -> dict[str, Any]:
        """What is written into results; no secrets."""
        return dict(settings_of(vars(self)))


def read_strategy(name: str) -> Strategy:
    """From a YAML file, by path or by the name of a shipped one.

    Raises:
        UserError: there is none, or its values cannot work.
    """
    path = find_config(name, "--strategy")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Strategy)
    try:
        config = parser.parse_args([f"--config={Path(path)}"])
        remember(config.as_dict())
        given = parser.instantiate_classes(config).as_dict()
        given.pop("config", None)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"--strategy {name}: {readable(error)}") from error
    strategy = Strategy(**given)
    try:
        strategy.check()
    except UserError as error:
        raise UserError(f"--strategy {name}: {error}") from error
    return strategy
