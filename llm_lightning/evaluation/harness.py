"""A network as lm-evaluation-harness wants one, read by packed rows and written by the rollout engine.

lm-eval renders the tasks' prompts and reads the answers; all that runs the network is this project's own. Prompts are
encoded, cut and ended as by lm-eval's `hf` model, so that scores are the same but for rounding.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llm_lightning.errors import UserError
from llm_lightning.evaluation.likelihoods import ROW_TOKENS, Likelihood, Request, likelihoods, read_text
from llm_lightning.evaluation.writing import Question, Strategy, Writer
from llm_lightning.measuring.answers import Answers, key_of
from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning.models.generation import end_tokens, generation_settings
from llm_lightning.models.heads import base_model
from llm_lightning.rollouts.adaptation import Adaptation, AdaptingNetwork
from llm_lightning.rollouts.thinking import sampler_of

DEFAULT_NEW_TOKENS = 256
"""lm-eval's, where a task says nothing."""


@dataclass(frozen=True)
class HarnessSettings:
    """What decides answers beside the network and the tasks.

    Args:
        seq_len: tokens of context; by default the network's.
        seed: of sampled answers; greedy ones do not look at it.
        max_new_tokens: of an answer, in the place of what the tasks say.
        system_prompt: stands before every conversation; only for the message where a template has no place for it.
        strategy: how answers that are written are arrived at; by default each is one text, drawn as its task says.
    """

    seq_len: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    system_prompt: str | None = None
    strategy: Strategy | None = None


@dataclass(frozen=True)
class Engine:
    """How the work is cut, which changes no answer.

    Args:
        row_tokens: of one forward pass over likelihoods.
        num_slots: texts that are written at the same time.
        ranks: that share the items.
        progress: whether a bar is shown.
    """

    row_tokens: int = ROW_TOKENS
    num_slots: int = 64
    ranks: EvaluationRanks = field(default_factory=EvaluationRanks)
    progress: bool = True


class NetworkLM(TemplateLM):
    """See the module.

    Args:
        model: a `PreTrainedModel` with a language head, or a `PeftModel` around one.
        tokenizer: its own.
        fingerprint: names the weights; answers of others are not taken over.
        settings: what decides answers.
        engine: how the work is cut.
        answers: of an earlier attempt, and where new ones are kept.
        tell: says what a user should know of, once.

    Attributes:
        num_cut: prompts that were cut at their beginning, since the network's context is shorter.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        fingerprint: str,
        settings: HarnessSettings | None = None,
        engine: Engine | None = None,
        answers: Answers | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.fingerprint = model, tokenizer, fingerprint
        self.settings, self.engine = settings or HarnessSettings(), engine or Engine()
        self.answers = answers or Answers()
        self.tell = tell
        self.num_cut = 0
        self._told: set[str] = set()
        self._questions: dict[tuple[str, int], str] = {}
        self._conversations: dict[str, list[dict[str, str]]] = {}
        self.max_length = self._context_length()
        generation = generation_settings(base_model(model).generation_config, tokenizer)
        self.eos_token_ids = end_tokens(generation)

    def _context_length(self) -> int:
        own = resolve_max_length(base_model(self.model).config, self.tokenizer)
        if self.settings.seq_len is not None and not 1 < self.settings.seq_len <= own:
            raise UserError(f"seq_len={self.settings.seq_len}: the model's context has {own} tokens; give 2 to {own}.")
        return self.settings.seq_len or own

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context stands behind."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Of lm-eval's cache of requests, which is not used."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As `hf` does: a text that begins with BOS already gets no second one."""
        options: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            options["add_special_tokens"] = False
        return self.tokenizer.encode(string, **options)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation.

        Raises:
            UserError: there is no template, or it takes no system prompt where the user gives one.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                "chat_template: the model's tokenizer has none, so that prompts cannot be rendered as conversations: "
                "leave --chat_template out, or give a model with one."
            )
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self._rendered(chat_history, chat_history, options)
        except TemplateError as error:
            if self.settings.system_prompt is not None:
                raise UserError(f"system_prompt: the model's chat template refuses it: {error}") from error
            self._say("The chat template takes no system turn: the tasks' descriptions are left out.")
        rest = [message for message in chat_history if message["role"] != "system"]
        return self._rendered(rest, chat_history, options)

    def _rendered(self, read: list[dict[str, str]], chat_history: list[dict[str, str]], options: dict[str, Any]) -> str:
        text = self.tokenizer.apply_chat_template(read, **options)
        if self.settings.strategy is not None:
            self._conversations[text] = chat_history  # as rewards see prompts
        return text

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        self._check_adaptation("tasks with options are read as they are")
        asked = [self._cut(Request(context, continuation)) for _, context, continuation in requests]
        return [(each.logprob, each.is_greedy) for each in self._likelihoods(asked)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows of the context's length where they are longer."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            own = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pieces = [Request(*make_disjoint_window(window)) for window in own]
            windows += pieces
            counts.append(len(pieces))
        adaptation = None if self.settings.strategy is None else self.settings.strategy.adaptation
        if adaptation is not None:
            rest = iter(windows)
            return self._read_adapting([list(islice(rest, count)) for count in counts], adaptation)
        found = iter(self._likelihoods(windows))
        return [sum(next(found).logprob for _ in range(count)) for count in counts]

    def _read_adapting(self, texts: Sequence[Sequence[Request]], adaptation: Adaptation) -> list[float]:
        """The log-probability of each text, from which the network learns while it reads it."""
        keys = [key_of("adapted", self.fingerprint, adaptation, text) for text in texts]

        def find(asked: Sequence[Sequence[Request]]) -> Iterator[tuple[int, Any]]:
            adapting = AdaptingNetwork(self.model, adaptation)
            try:
                for number, text in enumerate(asked):
                    yield number, read_text(adapting, text)
            finally:
                adapting.close()

        self._ask(dict(zip(keys, texts, strict=True)), find, "Reading texts")
        return [self.answers[key] for key in keys]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to the first of the task's stop strings."""
        strategy = self.settings.strategy
        self._check_adaptation("for answers that are written after it there is `llm-lightning generate`")
        count = 1 if strategy is None else strategy.num_samples
        places, samples, seen = [], [], Counter[str]()
        for context, given in (request.args for request in requests):
            asked = key_of(context, given)
            places.append((asked, seen[asked]))
            repeats = range(count * seen[asked], count * (seen[asked] + 1))
            samples.append(self._samples(context, given, repeats))
            seen[asked] += 1
        thinking = None if strategy is None else strategy.thinking
        writer = Writer(
            self.model, self.tokenizer, self.eos_token_ids, self.engine.num_slots, self.engine.ranks, thinking
        )
        self._ask({q.key: q for own in samples for q in own}, writer.write, "Writing answers")
        chosen = [0] * len(samples)
        if strategy is not None and count > 1:
            prompts = [self._conversations.get(request.args[0], request.args[0]) for request in requests]
            texts = [[self.answers[question.key]["text"] for question in own] for own in samples]
            chosen = strategy.choose(prompts, texts, [request.doc for request in requests])
        taken = [own[place].key for own, place in zip(samples, chosen, strict=True)]
        self._questions.update(zip(places, taken, strict=True))
        return [self.answers[key]["text"] for key in taken]

    def answer(self, context: str, given: dict[str, Any], repeat: int = 0) -> dict[str, Any]:
        """What is known of an answer that was written: `text`, `num_tokens`, `truncated`."""
        return self.answers[self._questions[key_of(context, given), repeat]]

    def written(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        """What is known of the answer in a sample as lm-eval logs it; None where nothing was written."""
        arguments = sample["arguments"][0]
        if len(arguments) != 2 or not isinstance(arguments[1], dict):
            return None
        return self.answer(*arguments)

    def _samples(self, context: str, given: dict[str, Any], repeats: range) -> list[Question]:
        """A prompt and how its answers are drawn, from a request's arguments.

        Args:
            context: the prompt.
            given: lm-eval's `gen_kwargs`.
            repeats: of each answer, how many of the same prompt stand before it.

        Raises:
            UserError: an option that the rollout engine does not have, or no room for the answer.
        """
        options = dict(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
        max_new_tokens = self.settings.max_new_tokens or options.pop("max_gen_toks")
        ids = self.tok_encode(context)
        asked = Question.of(ids, max_new_tokens, options)
        thinking = None
        if (strategy := self.settings.strategy) is not None:
            thinking = strategy.thinking
            sampling = strategy.drawn(asked.sampling)
            asked = replace(
                asked,
                sampling=replace(sampling, max_new_tokens=self.settings.max_new_tokens or sampling.max_new_tokens),
            )
        most = sampler_of(thinking, self.tokenizer, asked.sampling, self.eos_token_ids).most_tokens
        room = self.max_length - most
        if room < 1:
            thoughts = "" if thinking is None else ", with a budget for thoughts,"
            raise UserError(
                f"max_new_tokens={asked.sampling.max_new_tokens}{thoughts} leaves no room for a prompt in the model's "
                f"context of {self.max_length} tokens: give fewer by --max_new_tokens."
            )
        if len(ids) > room:
            self._count_cut()
        asked = replace(asked, ids=ids[-room:])
        decides = [self.fingerprint, ids, asked.sampling, asked.stops, room, self.eos_token_ids]
        if thinking is not None:
            decides.append(thinking)
        seed, samples = self.settings.seed, []
        for repeat in repeats:
            key = key_of("text", *decides, *([seed, repeat] if asked.sampling.temperature else []))
            samples.append(asked.named(key, seed, repeat))
        return samples

    def _check_adaptation(self, words: str) -> None:
        """Raise `UserError` where a task that is none of whole texts is asked with adaptation."""
        if self.settings.strategy is not None and self.settings.strategy.adaptation is not None:
            raise UserError(f"--strategy: adaptation is for tasks of whole texts, such as local_text; {words}.")

    def _cut(self, request: Request) -> Request:
        """Leave out the context's beginning where there is no room for it."""
        if len(request.continuation) > self.max_length:
            raise UserError(
                f"An answer to be scored has {len(request.continuation)} tokens, the model's context only "
                f"{self.max_length}: this task is not for this model."
            )
        surplus = len(request.context) + len(request.continuation) - self.max_length - 1
        if surplus <= 0:
            return request
        self._count_cut()
        return Request(request.context[surplus:], request.continuation)

    def _likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        keys = [key_of("likelihood", self.fingerprint, each.context, each.continuation) for each in requests]

        def find(asked: Sequence[Request]) -> Iterator[tuple[int, Any]]:
            return likelihoods(self.model, asked, self.engine.row_tokens)

        self._ask(dict(zip(keys, requests, strict=True)), find, "Reading answers")
        return [Likelihood(*self.answers[key]) for key in keys]

    def _ask(self, asked: dict[str, Any], find: Callable[[list[Any]], Iterator[tuple[int, Any]]], words: str) -> None:
        """Find the answers that are not known yet, each rank its share of them."""
        missing = list(self.engine.ranks.share([key for key in asked if key not in self.answers]))
        own: dict[str, Any] = {}
        shown = self.engine.progress and self.engine.ranks.rank == 0
        with torch.no_grad(), tqdm(total=len(missing), desc=words, disable=not shown or not missing) as bar:
            for number, answer in find([asked[key] for key in missing]):
                own[missing[number]] = answer
                self.answers.add(missing[number], answer)
                bar.update()
        for others in self.engine.ranks.gather(own):
            self.answers.take(others)

    def _count_cut(self) -> None:
        self.num_cut += 1
        self._say(
            f"Prompts are longer than the model's context of {self.max_length} tokens and are cut at their beginning, "
            "as lm-eval does; how many is said at the end."
        )

    def _say(self, words: str) -> None:
        if words not in self._told and self.engine.ranks.rank == 0:
            self.tell(words)
        self._told.add(words)
