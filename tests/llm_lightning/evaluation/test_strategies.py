"""Tasks that are answered by a choice among several samples, and after thoughts."""

from collections import Counter

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.api.instance import Instance

from llm_lightning.errors import UserError
from llm_lightning.evaluation.harness import Engine, HarnessSettings, NetworkLM
from llm_lightning.inference import AnswerPattern, BestOfN, MajorityVote
from llm_lightning.inference.strategy import Strategy, read_strategy
from llm_lightning.measuring.answers import Answers
from llm_lightning.rewards import Length, Reward
from llm_lightning.rollouts.adaptation import Adaptation, AdaptingNetwork
from llm_lightning.rollouts.local_engine import LocalEngine
from llm_lightning.rollouts.thinking import Thinking
from tests.llm_lightning.evaluation.small_model import save_small_model

GREEDY = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
SAMPLED = {**GREEDY, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
DOCS = [{"question": f"What is {number} plus {number}?", "target": number} for number in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_small_model(tmp_path_factory.mktemp("model"), initializer_range=0.05)
    return LocalEngine(str(folder))


def ask(model, options, strategy=None, repeats=1, answers=None):
    settings = HarnessSettings(strategy=strategy)
    lm = NetworkLM(model.network, model.tokenizer, "small", settings, Engine(progress=False), answers)
    requests = [
        Instance("generate_until", doc, (doc["question"], options), number)
        for number, doc in enumerate(DOCS)
        for _ in range(repeats)
    ]
    return lm, lm.generate_until(requests)


def by_prompt(texts, count):
    return [texts[first : first + count] for first in range(0, len(texts), count)]


def test_a_vote_is_that_over_the_samples(model, tmp_path):
    reader = AnswerPattern("([a-m])")
    samples = by_prompt(ask(model, SAMPLED, repeats=5)[1], 5)
    strategy = Strategy(num_samples=5, choices={"vote": MajorityVote(reader)})
    lm, taken = ask(model, GREEDY, strategy, answers=Answers(tmp_path))
    moved = 0
    for doc, own, text in zip(DOCS, samples, taken, strict=True):
        votes = Counter(answer for answer in map(reader, own) if answer is not None)
        most = max(votes.values())
        assert text == next(each for each in own if votes[reader(each)] == most)
        assert lm.answer(doc["question"], GREEDY)["text"] == text
        moved += text != own[0]
    assert moved
    # Another choice is made among the same samples, and none is written again.
    lm.answers.close()
    (file,) = tmp_path.glob("answers-*")
    written = file.read_text()
    longest = Strategy(num_samples=5, choices={"best": BestOfN()}, rewards={"long": Reward(Length(target=99))})
    lm, taken = ask(model, GREEDY, longest, answers=Answers(tmp_path))
    assert file.read_text() == written and written.count("\n") == 5 * len(DOCS)
    lengths = [[Length(target=99)([""], [each], {})[0] for each in own] for own in samples]
    assert taken == [own[each.index(max(each))] for own, each in zip(samples, lengths, strict=True)]


def test_thoughts_are_not_the_answer(model):
    thinking = Thinking(budget=5, start="Thoughts:", end=" So")
    lm, answers = ask(model, GREEDY, Strategy(thinking=thinking))
    for doc, answer in zip(DOCS, answers, strict=True):
        found = lm.answer(doc["question"], GREEDY)
        assert found["text"] == answer and "Thoughts:" not in answer
        start, end = (len(model.tokenizer.encode(each)) for each in ("Thoughts:", " So"))
        assert start + 1 <= found["num_tokens"] <= start + 5 + end + 8


def test_rewards_see_what_the_task_has(model):
    seen = []

    def reward(prompts, completions, columns):
        seen.append((prompts, columns["target"]))
        return [float(len(each)) for each in completions]

    strategy = Strategy(num_samples=2, choices={"best": BestOfN()}, rewards={"mine": Reward(reward)})
    ask(model, GREEDY, strategy)
    ((prompts, targets),) = seen
    assert prompts == [doc["question"] for doc in DOCS for _ in range(2)]
    assert targets == [number for number in range(6) for _ in range(2)]


def test_texts_are_learned_from_while_they_are_read(model):
    adaptation = Adaptation(lr=5e-3, chunk=64, rank=4)
    texts = ["The same line, again and again.\n" * 60, "Another text.", "The same line, again and again.\n" * 60]

    def read(strategy):
        settings, engine = HarnessSettings(strategy=strategy), Engine(progress=False)
        lm = NetworkLM(model.network, model.tokenizer, "small", settings, engine)
        return lm, lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])

    lm, found = read(Strategy(adaptation=adaptation))
    assert found[0] == found[2]
    plain = read(None)[1]
    assert found[0] > 0.9 * plain[0] and found[1] == pytest.approx(plain[1], rel=1e-5)
    assert plain == read(None)[1]  # the weights are what they were

    ids = torch.tensor(lm.tok_encode(texts[0]))
    assert len(ids) > lm.max_length  # so that there are several windows
    adapting, total, before = AdaptingNetwork(model.network, adaptation), 0.0, torch.tensor([lm.prefix_token_id])
    with adapting.document():
        for part in ids.split(lm.max_length):
            total += float(adapting.read(before, part).sum())
            before = part[-1:]
    adapting.close()
    # The last window of lm-eval's is filled with what stands before it.
    assert found[0] == pytest.approx(total, rel=0.02)

    with pytest.raises(UserError, match="adaptation is for tasks of whole texts, such as local_text"):
        ask(model, GREEDY, Strategy(adaptation=adaptation))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"num_samples": 2, "temperature": 0}, "temperature=0 writes the same answer num_samples=2 times"),
        ({"choices": {"best": {"class_path": "BestOfN"}}}, "chooses by rewards, and there is none to choose by"),
        ({"thinking": {"budget": 0}}, "thinking.budget=0 must be at least 1"),
        ({"adaptation": {"lr": 0}}, "adaptation.lr=0.0 must be above 0"),
        ({"samples": 3}, "samples"),
    ],
)
def test_mistakes(tmp_path, settings, words):
    (tmp_path / "strategy.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=words) as caught:
        read_strategy(str(tmp_path / "strategy.yaml"))
    assert "--strategy" in str(caught.value)


def test_a_shipped_one_is_read_by_its_name():
    strategy = read_strategy("inference/vote")
    assert (strategy.num_samples, strategy.max_new_tokens) == (8, 512)
    assert isinstance(next(iter(strategy.choices.values())), MajorityVote)
    with pytest.raises(UserError, match="--strategy inference/votes: there is no such file"):
        read_strategy("inference/votes")
