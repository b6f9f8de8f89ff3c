"""Answers and scores against those of lm-eval's own `hf` model."""

import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from tests.llm_lightning.evaluation.small_model import (
    CHOICE,
    TEXT,
    WRITTEN,
    questions,
    save_small_model,
    write_rows,
    write_task,
)

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from llm_lightning.evaluation.harness import Engine, HarnessSettings, NetworkLM
from llm_lightning.measuring.answers import Answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    data = write_rows(place / "sums.jsonl", questions())
    for name, settings in (("choice", CHOICE), ("written", WRITTEN), ("text", TEXT)):
        write_task(place, name, data, **settings)
    return TaskManager(include_path=str(place), include_defaults=False)


def network_lm(folder, settings=None, answers=None, **engine) -> NetworkLM:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = Backbone(path=str(folder), dtype="float32").build(tokenizer)
    return NetworkLM(network, tokenizer, "weights", settings, Engine(progress=False, **engine), answers)


def evaluated(lm, tasks, **options):
    results = simple_evaluate(
        lm, tasks=["choice", "written", "text"], task_manager=tasks, bootstrap_iters=0, log_samples=True, **options
    )
    scores = {
        (task, metric): value
        for task, metrics in results["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    }
    answers = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for task, samples in results["samples"].items()
    }
    return scores, answers


def assert_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert len(ours[0]) >= 5
    assert ours[1]["written"] == theirs[1]["written"]
    for one, other in zip(ours[1]["choice"], theirs[1]["choice"], strict=True):
        assert [a[0][0] for a in one] == pytest.approx([b[0][0] for b in other], abs=1e-3)
        assert [a[0][1] for a in one] == [b[0][1] for b in other]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_fewshot": 3},
        {"apply_chat_template": True, "num_fewshot": 2, "system_instruction": "Be brief."},
    ],
    ids=["zero-shot", "few-shot", "chat"],
)
def test_scores_and_answers_are_those_of_hf(folder, tasks, options):
    theirs = evaluated(HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1), tasks, **options)
    lm = network_lm(folder)
    ours = evaluated(lm, tasks, **options)
    assert_same(ours, theirs)
    written = [text for ((text,),) in ours[1]["written"]]
    assert len(set(written)) > 3  # what the test is worth: answers of several lengths, some stopped
    assert len(set(map(len, written))) > 3


@pytest.mark.parametrize("row_tokens, num_slots", [(64, 1), (300, 5)])
def test_they_do_not_depend_on_the_batch_size(folder, tasks, row_tokens, num_slots):
    options = {"num_fewshot": 2}
    small = evaluated(network_lm(folder, row_tokens=row_tokens, num_slots=num_slots), tasks, **options)
    assert_same(small, evaluated(network_lm(folder), tasks, **options))


def test_a_context_that_is_too_long_is_cut_as_hf_cuts_it_and_counted(folder, tasks):
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, max_length=80)
    told = []
    lm = network_lm(folder, HarnessSettings(seq_len=80))
    lm.tell = told.append
    assert_same(evaluated(lm, tasks, num_fewshot=3), evaluated(theirs, tasks, num_fewshot=3))
    assert lm.num_cut > 12
    assert len(told) == 1
    assert "80 tokens" in told[0]


def generate(lm, prompts, **given):
    requests = [Instance("generate_until", {}, (prompt, given), 0) for prompt in prompts]
    return lm.generate_until(requests)


def test_sampled_answers_depend_on_prompt_seed_and_repeat_alone(folder):
    given = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    prompts = ["Hello", "What is this?", "Hello", "user"]
    together = generate(network_lm(folder), prompts, **given)
    assert together[0] != together[2]
    assert generate(network_lm(folder, num_slots=1), prompts, **given) == together
    assert generate(network_lm(folder), ["user"], **given) == [together[3]]
    assert generate(network_lm(folder, HarnessSettings(seed=1)), prompts, **given) != together


def test_truncated_answers_are_known(folder):
    lm = network_lm(folder)
    prompts = [row["question"] for row in questions()]
    given = {"until": ["e", "a"], "max_gen_toks": 6}
    generate(lm, prompts, **given)
    found = [lm.answer(prompt, given) for prompt in prompts]
    assert {answer["truncated"] for answer in found} == {True, False}
    for answer in found:
        assert not set("ea") & set(answer["text"])
        assert answer["num_tokens"] == 6 or not answer["truncated"]


def test_answers_that_are_known_are_not_asked_again(folder, tasks, tmp_path):
    first = evaluated(network_lm(folder, answers=Answers(tmp_path)), tasks)
    with next(tmp_path.glob("*.jsonl")).open("ab") as file:
        file.write(b'["torn')
    lm = network_lm(folder, answers=Answers(tmp_path))
    lm.model.forward = lm.model.get_decoder().forward = None  # whoever asks the network fails
    assert evaluated(lm, tasks) == first
    other = network_lm(folder, answers=Answers(tmp_path))
    other.fingerprint = "other weights"
    other.model.get_decoder().forward = None
    with pytest.raises(TypeError):
        evaluated(other, tasks)


def test_mistakes_are_told_in_words(folder):
    lm = network_lm(folder)
    lm.tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat_template: the model's tokenizer has none"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    with pytest.raises(UserError, match=r"max_new_tokens=600 leaves no room .* 512 tokens"):
        generate(lm, ["Hello"], max_gen_toks=600, until=[])
    with pytest.raises(UserError, match="num_beams=4"):
        generate(lm, ["Hello"], num_beams=4, until=[])
    with pytest.raises(UserError, match="seq_len=1000: the model's context has 512"):
        network_lm(folder, HarnessSettings(seq_len=1000))
    with pytest.raises(UserError, match="has 600 tokens, the model's context only 512"):
        lm._loglikelihood_tokens([(None, [5], [6] * 600)])


def test_no_gradient_and_no_change(folder):
    lm = network_lm(folder)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    generate(lm, ["Hello"], max_gen_toks=4, until=[])
    lm._loglikelihood_tokens([(None, [5, 6], [7, 8])])
    assert lm.model.training
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.model.parameters())
