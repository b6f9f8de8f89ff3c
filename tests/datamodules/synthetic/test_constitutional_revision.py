"""Responses that are criticised and rewritten: what is asked of an endpoint, and what a real network's texts become."""

import re

import pytest
import torch
from transformers import LlamaConfig

from datamodules import InstructionDataModule, PreferenceDataModule, SyntheticDataModule
from datamodules.errors import DataError
from datamodules.synthetic.generation import Generation
from datamodules.synthetic.generators import Constitution, ConstitutionalRevision
from datamodules.synthetic.generators.constitutional_revision import without_preamble
from datamodules.synthetic.openai_engine import OpenAIEngine
from datamodules.synthetic.seeds import Seed, Seeds, _write
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.rollouts import LocalEngine
from tests.chat_server import ChatServer, completion, send_json
from tests.datamodules.chat_tokenizers import chat_tokenizer

PRINCIPLES = Constitution([f"Principle {name}." for name in "ABCDE"])
QUESTIONS = [
    Seed(f"seed-{i}", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"What is {i}?"}])
    for i in range(16)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random network that ends its texts."""
    torch.manual_seed(0)
    path, tokenizer = tmp_path_factory.mktemp("model"), chat_tokenizer("smollm2")
    config = LlamaConfig(
        vocab_size=448, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    network = Backbone(config=config).build(tokenizer)
    network.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 350)]
    save_model_folder(network, tokenizer, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return InstructionDataModule(tokenizer=str(folder)).encoder


@pytest.fixture
def make(tmp_path, encoder):
    def run(generator, engine, place="g", seeds=QUESTIONS):
        path = tmp_path / "seeds.arrow"
        _write(path, iter(seeds))
        generation = Generation({"g": generator}, {"g": Seeds(path)}, engine, encoder, tmp_path / place)
        generation.run()
        return list(generation.candidates()), generation.statistics()["g"]

    return run


@pytest.fixture
def server():
    with ChatServer().running() as server:
        yield server


def step_of(body):
    return (len([m for m in body["messages"] if m["role"] == "assistant"])) % 3


def answer(body):
    last = body["messages"][-1]["content"]
    if "criticism alone" in last:
        return f"By {re.search('Principle (.)', last)[1]} it is too short."
    return f"Better ({body['seed']})." if last.startswith("Rewrite") else f"First to {last}"


def test_each_round_criticises_what_the_one_before_wrote(make, server):
    server.answer = answer
    candidates, statistics = make(ConstitutionalRevision(PRINCIPLES, rounds=2), OpenAIEngine(server.url, "m"))
    assert statistics["num_candidates"] == 16 and not statistics["dropped"] and len(server.calls) == 16 * 5
    drawn = set()
    for candidate in candidates:
        (number,) = re.findall(r"\d+", candidate.prompt)
        own = [b["messages"] for b in server.calls if b["messages"][1]["content"] == candidate.prompt]
        own.sort(key=len)
        assert [len(messages) for messages in own] == [2, 4, 4, 6, 6], "a round's conversation does not grow"
        assert all(messages[:2] == QUESTIONS[int(number)].messages for messages in own)
        judged = {messages[2]["content"] for messages in own[1:3]}
        assert f"First to What is {number}?" in judged and len(judged) == 2 and candidate.answer not in judged
        said = {tuple(m["content"] for m in messages) for messages in own[1:3]}
        assert {tuple(m["content"] for m in messages[:4]) for messages in own[3:]} == said
        principles = tuple(re.findall(r"Principle (.)\.", candidate.provenance.prompt.split("[system]")[-1]))
        asked = {re.search(r"Principle (.)", messages[3]["content"])[1] for messages in own[1:3]}
        assert len(asked) == 2 and set(principles) <= asked
        drawn |= asked
        assert candidate.rejected is None and candidate.provenance.seed_ids == (f"seed-{number}",)
    assert drawn == set("ABCDE")


def test_pairs_prefer_the_revision_and_what_did_not_change_is_none(make, server):
    server.answer = lambda body: (
        "Kept." if re.search(r"What is \d\?", body["messages"][1]["content"]) and step_of(body) != 1 else answer(body)
    )
    candidates, statistics = make(ConstitutionalRevision(PRINCIPLES, pairs=True), OpenAIEngine(server.url, "m"))
    assert statistics["dropped"] == {"the revision is the first response": 10}
    assert [(c.rejected[:8], c.answer[:6]) for c in candidates] == [("First to", "Better")] * 6
    alone, _ = make(ConstitutionalRevision(PRINCIPLES), OpenAIEngine(server.url, "m"), "alone")
    assert len(alone) == 16, "a response that needs no revision is one to learn from"


@pytest.mark.parametrize(("step", "name"), [(0, "response"), (1, "criticism"), (2, "revision")])
def test_a_step_that_gives_nothing_is_counted_by_its_name(make, server, step, name):
    def fault(body, attempt):
        question = body["messages"][1]["content"]
        if step_of(body) != step or question not in ("What is 3?", "What is 4?"):
            return None
        text, reason = ("", "stop") if question == "What is 3?" else ("half a", "length")
        return lambda handler: send_json(handler, completion(text, reason))

    server.answer, server.fault = answer, fault
    candidates, statistics = make(ConstitutionalRevision(PRINCIPLES), OpenAIEngine(server.url, "m"))
    assert len(candidates) == 14
    assert statistics["dropped"] == {f"{name}: empty reply": 1, f"{name}: cut off at max_new_tokens": 1}


class Stopping(LocalEngine):
    """Fails once it has written so many texts."""

    left = 10**9
    written = 0

    def write(self, requests):
        for each in super().write(requests):
            if self.left == self.written:
                raise DataError("killed")
            self.written += 1
            yield each


def test_a_real_network_revises_and_a_run_that_was_stopped_goes_on(folder, make):
    generator = ConstitutionalRevision(PRINCIPLES, rounds=2, pairs=True, max_new_tokens=24)
    straight = Stopping(str(folder), num_slots=8)
    candidates, statistics = make(generator, straight, "straight")
    assert len(candidates) >= 2 and sum(statistics["dropped"].values()) + len(candidates) == 16
    alone = LocalEngine(str(folder), num_slots=1)
    candidate = candidates[0]  # written again, step by step
    task = next(n for n in range(16) if generator.seed_of(n, QUESTIONS).id == candidate.provenance.seed_ids[0])
    draft = written_by(alone, generator.steps(task, QUESTIONS))
    assert (draft.messages, draft.rejected) == (candidate.messages, candidate.rejected)
    assert candidate.answer != candidate.rejected

    stopped, rest = Stopping(str(folder), num_slots=8), Stopping(str(folder), num_slots=8)
    stopped.left = 20
    with pytest.raises(DataError, match="killed"):
        make(generator, stopped, "stopped")
    assert make(generator, rest, "stopped") == (candidates, statistics)
    assert stopped.written + rest.written == straight.written


def written_by(engine, steps):
    requests = next(steps)
    while True:
        [(_, text)] = engine.write(requests)
        try:
            requests = steps.send([text])
        except StopIteration as stop:
            [draft] = stop.value
            return draft


def test_the_announcement_of_a_revision_is_no_part_of_it():
    for text, rest in {
        "Here is the revised response:\n\nNo.": "No.",
        "Sure! This is my rewritten answer to the request: No.": "No.",
        "To revise for an exam: sleep.": "To revise for an exam: sleep.",
        "The revised edition: a good book.": "The revised edition: a good book.",
        "Revised response:": "Revised response:",
    }.items():
        assert without_preamble(text) == rest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"constitution": Constitution([])}, r"constitution\.criteria must be a list"),
        ({"constitution": Constitution("Be good.")}, r"constitution\.criteria must be a list"),
        ({"constitution": Constitution(["Be good.", " "])}, r"constitution\.criteria must be a list"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"critique": "Judge it."}, r"no place for \{principle\}"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(DataError, match=words):
        ConstitutionalRevision(**{"constitution": PRINCIPLES} | settings)


def test_pairs_go_with_preferences_alone(folder):
    for data, pairs, words in (
        (PreferenceDataModule("pairs.jsonl", str(folder)), False, "ConstitutionalRevision with pairs=true"),
        (InstructionDataModule("rows.jsonl", str(folder)), True, "use it with a PreferenceDataModule"),
    ):
        with pytest.raises(DataError, match=words):
            SyntheticDataModule(data, {"g": ConstitutionalRevision(PRINCIPLES, pairs=pairs)}).check()
