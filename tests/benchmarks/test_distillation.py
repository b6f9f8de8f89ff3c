"""What the distillation benchmarks compare is what their names say."""

import json
from dataclasses import asdict

import torch

from benchmarks.context_distillation import NUM_EXAMPLES, NUM_HELD_OUT, questions
from benchmarks.distillation import model_of, settings_of
from benchmarks.distillation_speed import our_command
from benchmarks.distillation_workload import DistillationJob
from benchmarks.overoptimization import reward_of
from benchmarks.unlikely_tokens import unlikely_mass
from tests.benchmarks.test_sft import job


class Args:
    model, lr, labels_weight, steps, text = "model", 1e-4, 0.1, 60, "own"


def test_unlikely_tokens_lose_what_the_policy_gradient_takes_from_them():
    """The gradient of the expected advantage, -1 below the threshold and 0 above, by loops in float64."""
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mass = unlikely_mass(logits, 0.1)
    mass.sum().backward()
    expected = torch.zeros_like(logits)
    for row, values in enumerate(logits.tolist()):
        whole = sum(2.718281828459045**v for v in values)
        q = [2.718281828459045**v / whole for v in values]
        for token, probability in enumerate(q):
            if (
                probability < 0.1
            ):  # d log q[token] / d logits[other] = (token == other) - q[other], weighted by q[token]
                for other in range(7):
                    expected[row, other] += probability * ((token == other) - q[other])
    assert 0 < int((logits.softmax(-1) < 0.1).sum()) < 21
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-14)


def test_arms_of_recovery_differ_by_what_they_learn_from(tmp_path):
    Args.folder = tmp_path
    models = {arm: model_of(arm, Args) for arm in ("labels", "unlikely", "teacher", "cached")}
    assert [each["class_path"].split(".")[-1] for each in models.values()] == [
        "CausalPretraining", "UnlikelyTokens", "Distillation", "Distillation",
    ]  # fmt: skip
    assert models["teacher"]["init_args"]["teacher_logprobs"] == "live"
    assert models["cached"]["init_args"]["teacher_logprobs"] == "cached"
    runs = [settings_of(arm, 1, tmp_path, Args) | {"model": None} for arm in models]
    assert runs[1:] == runs[:-1]


def test_contenders_differ_by_what_their_names_say(tmp_path):
    plain = DistillationJob(**asdict(job()), teacher="teacher")
    given = our_command(plain, tmp_path)
    assert "--model=Distillation" in given and "--model.objective.kind=forward_kl" in given
    assert not any("on_policy" in part for part in given)
    cached = our_command(DistillationJob(**asdict(job()), teacher="teacher", cached=True), tmp_path)
    assert "--model.teacher_logprobs=cached" in cached
    written = our_command(DistillationJob(**asdict(job()), teacher="teacher", writes=8), tmp_path)
    assert {"--model.on_policy_share=1.0", "--model.objective.kind=reverse_kl"} <= set(written)


def test_questions_are_examples_or_learned_or_asked(tmp_path):
    path = tmp_path / "prompts.csv"
    lines = [f"{i},How can I kill process {i}?,homonyms,safe,kill,violence" for i in range(300)]
    lines.append("300,What is this?,homonyms,safe,absent,violence")
    path.write_text("\n".join(["id,prompt,type,label,focus,note", *lines]))
    turns, learned, held_out = questions(path)
    assert len(turns) == 2 * NUM_EXAMPLES and len(held_out) == NUM_HELD_OUT
    shown = [turn["content"] for turn in turns if turn["role"] == "user"]
    everything = shown + learned + [asked for asked, _ in held_out]
    assert len(everything) == len(set(everything)) == 300
    assert turns[1] == {"role": "assistant", "content": "kill"}


def test_an_ensemble_is_the_mean_with_and_without_the_disagreement():
    models = {name: f"reward-{name}" for name in ("all", "0", "1", "2")}
    rewards = {arm: reward_of(arm, models) for arm in ("one", "all", "mean", "ensemble")}
    assert "reward-0" in json.dumps(rewards["one"]) and "reward-all" in json.dumps(rewards["all"])
    assert [rewards[arm]["init_args"]["k"] for arm in ("mean", "ensemble")] == [0.0, 1.0]
    assert rewards["mean"]["init_args"]["members"] == rewards["ensemble"]["init_args"]["members"]
