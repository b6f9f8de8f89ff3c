"""Replies that the student writes while it learns, for its teacher to judge (GKD, Agarwal et al., arXiv:2306.13649).

A student that only reads others' texts never sees where its own go wrong. So some conversations get their last reply
anew from the student as it is at this step, and there the loss is the divergence from the teacher alone: what the
student wrote is no example to follow.

Which conversations these are, and what is written, is drawn by the seed, the step and the conversation's place in the
data, and by nothing else. So neither the cut into micro-batches and ranks nor a resume changes them, up to the rounding
of the student's own probabilities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_lightning.modules.distillation.documents import TrainedDocument, trained_documents
from llm_lightning.objectives.chunks import ROUNDING
from llm_lightning.objectives.language import IGNORE_INDEX
from llm_lightning.rollouts import Key, Sampler, Sampling
from llm_lightning.rollouts.sampling import uniforms

WRITTEN = "written"
"""In a batch, (1, L) bool: tokens that the student wrote."""


@dataclass(frozen=True)
class OwnReplies:
    """Lets the student write.

    Args:
        share: of the conversations, as a probability.
        sampling: how tokens are drawn.
        seed: of the choice and of the tokens.
    """

    share: float
    sampling: Sampling
    seed: int

    def put_in(
        self, batch: Mapping[str, Any], step: int, model: Any, eos_token_ids: Sequence[int]
    ) -> Mapping[str, Any]:
        """The batch with some last replies written anew, its documents in one row; every rank calls it.

        Args:
            batch: as the DataModules yield it, on the CPU, with `row_numbers`.
            step: number of the optimizer step.
            model: the student.
            eos_token_ids: tokens that end a reply.

        Returns:
            `input_ids`, `labels`, `position_ids`, `written` (1, L), and `num_written`, how many replies; the batch as
            it is where nothing was chosen.
        """
        documents = list(trained_documents(batch))
        numbers = batch["row_numbers"].tolist()
        keys: list[Key] = [(self.seed, step, numbers[each.row], each.number) for each in documents]
        chance = uniforms([(*key, 1) for key in keys], 1)[:, 0] if keys else torch.zeros(0)
        chosen = (chance < self.share).nonzero().squeeze(1).tolist()
        prompts = [prompt(documents[place]) for place in chosen]
        sampler = Sampler(self.sampling, eos_token_ids)
        replies = sampler.sample(model, prompts, [[keys[place]] for place in chosen])
        if not chosen:
            return batch
        written = dict(zip(chosen, zip(prompts, replies, strict=True), strict=True))
        parts = []
        for place, document in enumerate(documents):
            if place in written:
                begin, reply = written[place]
                ids, first = torch.cat([begin, reply.tokens]), len(begin)
                parts.append((ids, torch.arange(first, len(ids)), True))
            else:
                parts.append((document.ids, document.trained, False))
        return _one_row(parts) | {"num_written": torch.tensor(float(len(chosen)))}


def prompt(document: TrainedDocument) -> Tensor:
    """(n,) the tokens before a conversation's last reply, the last tokens in a row that are trained."""
    gaps = (document.trained.diff() != 1).nonzero()
    start = document.trained[int(gaps[-1]) + 1 if len(gaps) else 0]
    return document.ids[: int(start)]


def _one_row(parts: Sequence[tuple[Tensor, Tensor, bool]]) -> dict[str, Tensor]:
    """Documents one behind the other: their tokens, which of them are trained, and whether the student wrote these."""
    count = sum(len(ids) for ids, *_ in parts)
    length = count + -count % ROUNDING
    input_ids, position_ids = torch.zeros(2, 1, length, dtype=torch.int64)
    labels, written = torch.full_like(input_ids, IGNORE_INDEX), torch.zeros_like(input_ids, dtype=torch.bool)
    start = 0
    for ids, trained, is_written in parts:
        place = slice(start, start + len(ids))
        input_ids[0, place], position_ids[0, place] = ids, torch.arange(len(ids))
        labels[0, start + trained], written[0, start + trained] = ids[trained], is_written
        start = place.stop
    position_ids[0, start:] = torch.arange(length - start)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, WRITTEN: written}


def without_labels_loss(prepared: dict[str, Any]) -> dict[str, Any]:
    """A prepared batch in which what the student wrote has no next-token loss: only its teacher has a say there."""
    if WRITTEN not in prepared:
        return prepared
    is_written = prepared[WRITTEN].flatten()[prepared["target_positions"] + 1]
    return prepared | {"targets": prepared["targets"].masked_fill(is_written, IGNORE_INDEX)}


def written_sums(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a micro-batch: tokens that have a next-token loss, and how many replies the student wrote."""
    labelled = (batch["targets"] != IGNORE_INDEX).sum()
    return {"labelled": labelled, "num_written": batch.get("num_written", torch.zeros_like(labelled))}


def written_metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Of a step: which share of its trained tokens the student wrote, and how long its replies are."""
    written = totals["tokens"] - totals["labelled"]
    metrics = {"train/on_policy_tokens": written / max(totals["tokens"], 1)}
    if totals["num_written"]:
        metrics["train/completion_length"] = written / totals["num_written"]
    return metrics
