"""Tries out, on a miniature of a network, whether packed documents see each other and whether logits are its own.

Not a list of names: which architectures carry a state from document to document, have attention code of their own or
do something to their logits changes with every release of transformers. So each network is tried before its weights
are read: documents that share a row against each one alone, by the very functions that training runs, on the CPU in
float32. The reference is transformers' own forward pass over one text without anything of ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from llm_lightning.errors import UserError
from llm_lightning.models.attention import ATTENTION, attention_of
from llm_lightning.models.attention.choice import leave_attention_to_transformers
from llm_lightning.models.balance import check_balance, is_balanced
from llm_lightning.models.examination.miniature import SPECIAL_FROM, VOCABULARY, miniature, parts_of, randomize
from llm_lightning.models.examination.on_the_side import on_the_side
from llm_lightning.models.heads import head_scaling, hidden_states, language_loss, output_head, prepare_batch
from llm_lightning.models.loading.sharding import initialize
from llm_lightning.models.running.behaviour import Behaviour
from llm_lightning.models.tasks import LANGUAGE, REWARD, Task

LENGTHS = (7, 9, 20)
"""Of the texts; the first two share a row with padding, the last one fills the other row."""

TOLERANCE = 1e-3
"""Of the logits' standard deviation: rounding stays a hundred times below, a leak is far above."""

SMALL = 20_000_000
"""Parameters of a network that is tried itself where no miniature of it can be made."""

_known: dict[tuple[str, str, str], Behaviour | str] = {}


def examined(network: Any) -> Any:
    """The same network, tried out, for one that no `Backbone` built.

    Raises:
        UserError: it cannot be right.
    """
    task = REWARD if hasattr(network, str(REWARD.head)) else LANGUAGE
    examine(network.config, attention_of(network), task).attach(network)
    return network


def examine(config: PreTrainedConfig, attention: str, task: Task, *, trust_remote_code: bool = False) -> Behaviour:
    """How a network of this config has to be run; the same question is answered from memory.

    Args:
        config: of the network; only a miniature of it is built.
        attention: as in `Backbone`; another one may have to run where this is the default.
        task: which head it has.
        trust_remote_code: as in `Backbone`.

    Raises:
        UserError: no way of running it is right.
    """
    if attention.startswith("flash") or "/" in attention:
        # Its packing holds for one row of a batch alone, and it does not run on a CPU; padding it leaves out by itself.
        like = examine(config, "sdpa", task, trust_remote_code=trust_remote_code)
        return replace(like, attention=attention, packs=False, reason="it runs on GPUs alone")
    key = _contents(config), attention, task.name
    if key not in _known:
        try:
            with on_the_side():
                _known[key] = Examination(config, task, trust_remote_code).result(attention)
        except UserError as error:
            _known[key] = str(error)
        except Exception as error:
            _known[key] = f"{config.model_type} networks take no texts alone in transformers ({_line(error)})."
    known = _known[key]
    if isinstance(known, str):
        raise UserError(known)
    return known


class Examination:
    """One architecture with one head; to be used inside of `on_the_side`.

    Attributes:
        texts: (1, n) token ids each.
        alone: (n, V) logits of each text by itself, or its reward.

    Raises:
        UserError: no miniature of it runs.
    """

    def __init__(self, config: PreTrainedConfig, task: Task, trust_remote_code: bool = False) -> None:
        self.kind = config.model_type
        self.task = task
        self.options = {"trust_remote_code": trust_remote_code}
        # No token twice: it would score alike, and which of equal ones a network that picks the best takes is chance.
        self.texts = [torch.randperm(SPECIAL_FROM - 10)[None, :length] + 10 for length in LENGTHS]
        self.config, self.reference, self.alone = self._reference(config)

    def result(self, attention: str) -> Behaviour:
        """The first way that is right, the fastest first."""
        self._check_causal()
        if self.task.head is None and self.task.is_causal:
            check_balance(self.reference)
            self._check_loss()
        reasons: list[str] = []
        unruled = self._unruled()
        for own_logits in (False, True) if self.task.head is None else (False,):
            for packs in (True, False):
                for name in _attentions(attention):
                    reason, two_way = reasons[0] if reasons else None, not self.task.is_causal
                    way = Behaviour(name, packs, own_logits, reason, two_way, unruled)
                    if (why_not := self._why_not(way)) is None:
                        return way
                    reasons.append(why_not)
        way_out = (
            "Choose another network" if attention == ATTENTION else f"Leave out model.backbone.attention={attention}"
        )
        raise UserError(
            f"{self.kind} networks cannot be trained as a {self.task.name}: neither packed nor with one document a row "
            f"do they give what transformers gives for a text alone ({reasons[-1]}). {way_out}."
        )

    def _reference(self, config: PreTrainedConfig) -> tuple[PreTrainedConfig, Any, list[Tensor]]:
        """A network that runs, as transformers runs it, and its logits of each text."""
        problem: Exception | None = None
        ways = (
            lambda: miniature(config),
            lambda: miniature(config, num_heads=4),
            lambda: miniature(config, of_each_kind=2),
            lambda: self._itself(config),
        )
        for make in ways:
            try:
                small = _quiet(make())
                network = self._build(small)
                return small, network, [network(input_ids=text).logits[0] for text in self.texts]
            except UserError:
                raise
            except Exception as error:
                problem = problem or error
        raise UserError(
            f"{self.kind} networks cannot be tried out before training, so that nobody knows whether packed documents "
            f"see each other in them ({_line(problem)}). Choose another network."
        )

    def _itself(self, config: PreTrainedConfig) -> PreTrainedConfig:
        with torch.device("meta"):
            network = self.task.from_config(config, **self.options)
        if (count := sum(p.numel() for p in network.parameters())) > SMALL:
            raise ValueError(f"no miniature of it works, and it has {count:,} parameters")
        return config

    def _build(self, config: PreTrainedConfig, **options: Any) -> Any:
        network = self.task.from_config(config, dtype=torch.float32, **options, **self.options).eval()
        if self.task.head is not None and not hasattr(network, self.task.head):
            raise UserError(
                f"{self.kind} networks cannot be trained as a {self.task.name}: transformers gives them no linear head "
                f"named {self.task.head}, which reads a text's last token. Choose another network."
            )
        head = network.get_output_embeddings() if self.task.head is None else getattr(network, self.task.head)
        randomize(network)
        if head is not None:
            head.weight.mul_(8)  # so that a cap on the logits shows
        return network

    def network(self, way: Behaviour) -> Any:
        """The miniature, to be run in that way."""
        network = self._build(self.config, attn_implementation=way.attention)
        network.load_state_dict(self.reference.state_dict())
        way.attach(network)
        return network

    def _unruled(self) -> str | None:
        """A weight that stays as it was where the network is built empty and starts by its rules."""
        with torch.device("meta"):
            network = self.task.from_config(self.config, dtype=torch.float32, **self.options)
        network.to_empty(device="cpu")
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        initialize(network)
        tensors = (*network.named_parameters(), *network.named_buffers())  # without those that it has tied
        return next((name for name, tensor in tensors if tensor.isnan().any()), None)

    def _check_causal(self) -> None:
        if self.task.head is not None:
            return
        for length in (3, 10):
            text = self.texts[-1][:, :length]
            is_causal = is_close(self.reference(input_ids=text).logits[0], self.alone[-1][:length])
            if is_causal and not self.task.is_causal:
                raise UserError(
                    f"{self.kind} networks of this config do not look at the tokens behind a hidden one: they are no "
                    f"{self.task.name}s (an encoder has is_decoder=false in its config)."
                )
            if self.task.is_causal and not is_causal:
                raise UserError(
                    f"{self.kind} networks of this config look at the tokens that they are to predict: they are no "
                    "causal language models (an encoder is one with is_decoder=true in its config)."
                )

    def _check_loss(self) -> None:
        """What transformers takes for the loss of a text is the cross-entropy of the next token."""
        text = self.texts[-1]
        loss = float(self.reference(input_ids=text, labels=text).loss)
        own = float(F.cross_entropy(self.alone[-1][:-1].float(), text[0, 1:]))
        if not is_balanced(self.reference.config) and abs(loss - own) > 1e-4 * max(1.0, abs(own)):
            raise UserError(
                f"{self.kind} networks learn something else than the next token in transformers (its loss of a text is "
                f"{loss:.4f}, the next token's {own:.4f})."
            )

    def _why_not(self, way: Behaviour) -> str | None:
        """What is wrong with a way of running the network, None where it is right."""
        try:
            network = self.network(way)
            found = self._logits(network)
            if any(not is_close(a, b) for a, b in zip(found, self.alone, strict=True)):
                return "its logits differ"
            return self._loss_differs(network)
        except Exception as error:
            return _line(error)

    def _logits(self, network: Any) -> list[Tensor]:
        """Of each text, where the first two share a row."""
        batch = prepare_batch(_packed(self.texts))
        states = hidden_states(network, batch)
        a, b, c = LENGTHS
        rows = [states[0, :a], states[0, a : a + b], states[1, :c]]
        if self.task.head is not None:
            head = getattr(network, self.task.head)
            return [head(row[-1]) for row in rows]
        head, scaling = output_head(network), head_scaling(network)
        return [scaling(head(row)) for row in rows]

    def _loss_differs(self, network: Any) -> str | None:
        """For a single text, from transformers' own, with its load-balancing where it has one."""
        if self.task.head is not None:
            return None
        text, two_way = self.texts[-1], not self.task.is_causal
        labels = F.pad(text[:, 1:], (1, 0), value=-100)
        batch = {"input_ids": text, "labels": labels, "position_ids": torch.arange(text.shape[1])[None]}
        with torch.enable_grad():
            ours = language_loss(network, prepare_batch(batch, two_way=two_way)).loss.item() / (text.shape[1] - 1)
        theirs = float(self.reference(input_ids=text, labels=labels if two_way else text).loss)
        if abs(ours - theirs) <= 1e-4 * max(1.0, abs(theirs)):
            return None
        return f"the loss of a text is {ours:.5f} instead of {theirs:.5f}"


def _contents(config: PreTrainedConfig) -> str:
    """All that a config says; not `to_dict`, which some configs refuse where their layers differ."""
    return repr(
        [
            (type(part), {k: v for k, v in vars(part).items() if not isinstance(v, PreTrainedConfig)})
            for part in parts_of(config)
        ]
    )


def _attentions(asked: str) -> tuple[str, ...]:
    return (ATTENTION, "sdpa", "eager") if asked == ATTENTION else (asked,)


def _packed(texts: list[Tensor]) -> Mapping[str, Tensor]:
    """Two rows, as DataModules make them: two texts with padding behind them, and one text."""
    a, b, c = (text[0] for text in texts)
    padding = torch.full((len(c) - len(a) - len(b),), VOCABULARY - 1)
    positions = torch.cat([torch.arange(len(part)) for part in (a, b, padding)])
    input_ids = torch.stack([torch.cat([a, b, padding]), c])
    labels = input_ids.where(input_ids != VOCABULARY - 1, -100)
    return {"input_ids": input_ids, "labels": labels, "position_ids": torch.stack([positions, torch.arange(len(c))])}


def _quiet(config: PreTrainedConfig) -> PreTrainedConfig:
    """With transformers' own attention, without what is random, and with a padding token that is in no text."""
    for part in (config, config.get_text_config(decoder=True)):
        leave_attention_to_transformers(part)
        part.pad_token_id = VOCABULARY - 1
        part.use_cache = False
    return config


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ by rounding alone."""
    scale = max(1.0, float(expected.float().std())) if expected.numel() > 1 else max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and float((found - expected).abs().max()) <= TOLERANCE * scale


def _line(error: Exception | None) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:160] if words else 'no reason given'}"
