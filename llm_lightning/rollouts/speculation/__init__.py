"""Guesses of what comes next: where they are right, one forward pass writes several tokens."""

from llm_lightning.rollouts.speculation.contract import Drafter, Drafts, Speculation
from llm_lightning.rollouts.speculation.draft_model import DraftModel
from llm_lightning.rollouts.speculation.prompt_lookup import PromptLookup

__all__ = ["DraftModel", "Drafter", "Drafts", "PromptLookup", "Speculation"]
