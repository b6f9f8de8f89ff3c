"""A judge is measured before it is believed, and one with a bias is found out."""

import json

import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.measuring.statistics import wilson_interval
from llm_lightning.rewards import Reward, prepare_rewards, score
from llm_lightning.rewards.judge.agreement import measure
from llm_lightning.rewards.judge.labelled import LabelledPair
from llm_lightning.rollouts import LocalEngine
from tests.chat_server import ChatServer
from tests.llm_lightning.evaluation.small_model import save_small_model
from tests.llm_lightning.rewards.judge.judges import by_rule, judge_of, quality, write_pairs


@pytest.fixture
def server():
    with ChatServer().running() as running:
        yield running


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl")


def prepared(judge, folder=None):
    said = []
    prepare_rewards({"liked": Reward(judge)}, folder, said.append)
    return judge.measured, "\n".join(said)


@pytest.mark.parametrize("comparison", ["pointwise", "pairwise"])
def test_a_judge_of_the_labels_rule_is_right_and_without_bias(server, pairs, tmp_path, comparison):
    server.answer = by_rule(quality)
    measured, said = prepared(judge_of(server.url, pairs, comparison=comparison), tmp_path / "judges")
    assert measured.accuracy == 1 and (measured.low, measured.high) == wilson_interval(40, 40)
    assert measured.length.value == 0 and not measured.length.is_sure
    assert (measured.position is None) == (comparison == "pointwise") and "biased" not in said
    assert "right in 100.0% of 40 labelled pairs (91.2% to 100.0%)" in said
    report = json.loads((tmp_path / "judges" / "liked" / "agreement.json").read_text())
    assert report["accuracy"] == 1 and report["calls"] == 80 == len(server.calls)
    prepared(judge_of(server.url, pairs, comparison=comparison), tmp_path / "judges")
    assert len(server.calls) == 80


@pytest.mark.parametrize("comparison", ["pointwise", "pairwise"])
def test_a_judge_of_length_is_found_out(server, pairs, comparison):
    server.answer = by_rule(lambda text: len(text) / 6)
    measured, said = prepared(judge_of(server.url, pairs, least=0.0, comparison=comparison))
    assert measured.accuracy == 0.5 and measured.length.value == 1 and measured.length.low > 0.7
    assert "towards the longer response +1.00" in said and "biased" in said.partition("longer response")[2]


def test_a_slight_favour_for_length_is_found_in_a_good_judge(server, pairs):
    server.answer = by_rule(lambda text: 2 * quality(text) + (len(text) > 35) * 3)
    measured, said = prepared(judge_of(server.url, pairs, comparison="pairwise"))
    assert 0.6 < measured.accuracy < 1 and measured.length.is_sure and 0.2 < measured.length.value < 1
    assert "biased" in said


@pytest.mark.parametrize(("shown", "sign"), [("A", 1), ("B", -1)])
def test_a_judge_of_positions_is_found_out(server, pairs, shown, sign):
    server.answer = lambda body: f"Verdict: {shown}"
    measured, said = prepared(judge_of(server.url, pairs, least=0.0, comparison="pairwise"))
    assert measured.accuracy == 0.5 and measured.position.value == sign and measured.position.is_sure
    assert not measured.length.is_sure, "half of the pairs by each order, whatever their length"
    assert f"towards the response shown first {sign:+.2f}" in said and said.endswith("biased.")


@pytest.mark.parametrize("comparison", ["pointwise", "pairwise"])
def test_a_judge_that_agrees_too_little_gives_no_reward(server, pairs, comparison):
    server.answer = lambda body: "Who knows?"
    judge = judge_of(server.url, pairs, comparison=comparison)
    with pytest.raises(UserError, match=r"Judge\.agreement\.least=0\.6: judge is right in 50\.0% .* 100\.0% of its"):
        prepared(judge)
    with pytest.raises(UserError, match=r"agreement\.least"):
        score({"liked": Reward(judge)}, ["a", "a"], ["b", "c"], {})


def test_without_labelled_pairs_a_line_says_so(server):
    _, said = prepared(judge_of(server.url, None))
    assert "is not known (agreement: null)" in said and not server.calls


def test_pairs_that_share_a_prompt_make_the_interval_wider(tmp_path):
    values = [1.0] * 30 + [0.0] * 10
    alone = [LabelledPair(str(number), "longer", "no") for number in range(40)]
    shared = [LabelledPair(str(number // 10), "longer", "no") for number in range(40)]
    first, second = (measure(pairs, values, 0.0, None) for pairs in (alone, shared))
    assert first.accuracy == second.accuracy == 0.75 and second.high - second.low > first.high - first.low
    assert first.length is None and "the longer response unknown" in str(first)


def planted(folder, judge):
    """A small network that was trained to reply `Verdict: A` to whatever this judge asks."""
    path = save_small_model(folder, hidden_size=32, initializer_range=0.05, max_position_embeddings=2048)
    engine = LocalEngine(str(path))
    network = engine.network.train().requires_grad_(True)
    reply = torch.tensor([*engine.tokenizer.encode("Verdict: A"), engine.eos_token_ids[0]])
    rows = []
    for a, b in (("apple", "plum and pear"), ("many words here", "few"), ("plum", "apple 3")):
        messages = [{"role": "user", "content": judge.rubric.about_two("Name fruits.", a, b)}]
        rows.append(torch.cat([engine._ids(messages, reply=True), reply]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(24):
        row = rows[step % len(rows)][None]
        labels = row.clone()
        labels[:, : -len(reply)] = -100
        network(input_ids=row, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval().requires_grad_(False)
    network.save_pretrained(path)
    return LocalEngine(str(path))


def test_a_real_network_that_favours_a_position_is_found_out(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 10)
    judge = judge_of("", pairs, engine=LocalEngine("unused"), least=0.0, comparison="pairwise", max_new_tokens=12)
    judge.engine = planted(tmp_path / "model", judge)
    measured, said = prepared(judge)
    assert measured.unreadable == 0 and measured.position.value == 1 and measured.position.is_sure
    assert "towards the response shown first +1.00" in said
    scores = score({"liked": Reward(judge)}, ["Name fruits."] * 3, ["apple", "plum", "pear plum"], {})
    assert scores["liked"] == [0.5] * 3 and scores["liked/inconsistent"] == [1] * 3
