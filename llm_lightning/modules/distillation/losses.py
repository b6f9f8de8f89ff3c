"""From a student and its teachers to a loss: the logits of neither are ever all there."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_lightning.models.adapters.adalora import orthogonality
from llm_lightning.models.balance import Routing
from llm_lightning.models.heads import base_model, head_scaling, hidden_states, output_head, with_head
from llm_lightning.models.loading.sharding import is_zero3, run_gathered
from llm_lightning.models.running.evaluating import evaluating
from llm_lightning.modules.reference import Reference
from llm_lightning.objectives.chunks import chunk_length, padded
from llm_lightning.objectives.distillation import (
    DistillationLoss,
    DistillationSums,
    Teacher,
    TeacherChunk,
    head_distillation,
    linear_distillation,
)

R = TypeVar("R")


class NetworkTeacher(NamedTuple):
    """A network that was run up to its head.

    Args:
        states: (N', H) its last hidden states before the N trained tokens, with rows of zeros behind them.
        head: from these to logits, as the architecture means them.
        vocab_size: V of the student. The networks have the same tokens, but may have been given a different number of
            rows behind them.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    vocab_size: int

    def chunk(self, places: slice, temperature: float) -> TeacherChunk:
        """See `objectives.distillation.Teacher`."""
        with torch.no_grad():
            logits = self.head(self.states[places]).float()[:, : self.vocab_size]
            logits = F.pad(logits, (0, self.vocab_size - logits.shape[1]), value=-math.inf)
            return TeacherChunk((logits / temperature).log_softmax(-1))


class Ensemble(NamedTuple):
    """The average of several teachers' distributions.

    Args:
        teachers: each of which knows all tokens' probabilities.
        weights: theirs, which sum to 1.
    """

    teachers: Sequence[NetworkTeacher]
    weights: Sequence[float]

    def chunk(self, places: slice, temperature: float) -> TeacherChunk:
        """See `objectives.distillation.Teacher`."""
        total = None
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            logprobs = teacher.chunk(places, temperature).logprobs.add_(math.log(weight))
            total = logprobs if total is None else torch.logaddexp(total, logprobs)
        assert total is not None
        return TeacherChunk(total)


def run_teachers(
    teachers: Sequence[nn.Module | Reference],
    weights: Sequence[float],
    batch: Mapping[str, Any],
    vocab_size: int,
    use: Callable[[Teacher], R],
) -> R:
    """What `use` makes of what the teachers know of a batch; where their heads are sharded, they are gathered for it.

    Args:
        teachers: frozen networks with the same tokens, or the student as it was before training.
        weights: theirs, which sum to 1.
        batch: from `prepare_batch`, or what the teachers read in its place.
        vocab_size: V of the student.
        use: is given the teacher of the batch's trained tokens.
    """

    # The student is read before any other network is gathered: what `use` does with it gathers it by itself.
    read = [_run_before(each, batch, vocab_size) if isinstance(each, Reference) else None for each in teachers]

    def run() -> R:
        pairs = zip(teachers, read, strict=True)
        known = Ensemble([one or _run(teacher, batch, vocab_size) for teacher, one in pairs], weights)
        return use(known if len(teachers) > 1 else known.teachers[0])

    gathered: Callable[[], R] = run
    for teacher in teachers:
        if not isinstance(teacher, Reference):
            gathered = partial(run_gathered, base_model(teacher), gathered)
    return gathered()


@torch.no_grad()
def likeliest(teacher: Teacher, count: int, top_k: int, temperature: float, vocab_size: int) -> TeacherChunk:
    """The K likeliest of `count` tokens' next ones, (N, K), from one chunk of V after the other."""
    parts = []
    step = chunk_length(vocab_size, torch.device("cpu"))
    for start in range(0, count, step):
        logprobs = teacher.chunk(slice(start, min(start + step, count)), temperature).logprobs
        parts.append(logprobs.topk(top_k, dim=-1))
    if not parts:
        return TeacherChunk(torch.zeros(0, top_k), torch.zeros(0, top_k, dtype=torch.int64))
    return TeacherChunk(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


@torch.no_grad()
def _run(teacher: Any, batch: Mapping[str, Any], vocab_size: int) -> NetworkTeacher:
    network = base_model(teacher)
    states = hidden_states(teacher, batch).flatten(0, 1).index_select(0, batch["target_positions"])
    head, scaling = output_head(network), head_scaling(network)
    return NetworkTeacher(padded(states), lambda h: scaling(head(h)), vocab_size)


def _run_before(reference: Reference, batch: Mapping[str, Any], vocab_size: int) -> NetworkTeacher:
    """What the student knew before training."""
    with reference.policy() as network, evaluating(base_model(network)):
        known: NetworkTeacher = run_gathered(base_model(network), _run, network, batch, vocab_size)
    own_head = output_head(base_model(reference.model))
    if not (isinstance(own_head, nn.Module) and any(p.requires_grad for p in own_head.parameters())):
        return known

    # It is used while the student runs, with an adapter on its head.
    def head(states: Tensor) -> Tensor:
        with reference.policy():
            return known.head(states)

    return known._replace(head=head)


@with_head
def student_loss(
    student: nn.Module, batch: Mapping[str, Any], teacher: Teacher, objective: DistillationLoss
) -> tuple[DistillationSums, Tensor | None]:
    """Summed losses of a prepared batch, and without gradient what of them balances a mixture's load.

    Args:
        student: as in `hidden_states`.
        batch: from `prepare_batch`.
        teacher: of its trained tokens.
        objective: what a token costs.
    """
    network, targets = base_model(student), batch["targets"]
    routing = Routing.of(network)
    states = hidden_states(student, batch, routing).flatten(0, 1).index_select(0, batch["target_positions"])
    head, scaling = output_head(network), head_scaling(network)
    if type(head) is nn.Linear and head.bias is None and not is_zero3(head.weight):
        sums = linear_distillation(states, head.weight, targets, teacher, objective, scaling=scaling)
    else:
        vocab_size = network.config.get_text_config(decoder=True).vocab_size
        sums = head_distillation(states, lambda h: scaling(head(h)), targets, vocab_size, teacher, objective)
    balance = None if routing is None else routing.loss() * len(targets)
    loss = sums.loss + orthogonality(student) * len(targets) + (0.0 if balance is None else balance)
    return sums._replace(loss=loss), None if balance is None else balance.detach()
