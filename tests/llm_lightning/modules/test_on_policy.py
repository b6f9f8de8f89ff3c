"""Replies that the student writes while it learns: which, by whom, and what they cost."""

import copy

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.heads import prepare_batch
from llm_lightning.modules import Distillation
from llm_lightning.modules.distillation.documents import TrainedDocument, trained_documents
from llm_lightning.modules.distillation.losses import run_teachers, student_loss
from llm_lightning.modules.distillation.on_policy import OwnReplies, prompt, without_labels_loss
from llm_lightning.modules.schedule import Schedule
from llm_lightning.rollouts import Sampler, Sampling
from tests.llm_lightning.conftest import stack, tiny_config
from tests.llm_lightning.modules.test_distillation import OBJECTIVE, build
from tests.llm_lightning.modules.test_pretraining import fit, ragged_row, sgd

SAMPLING = Sampling(max_new_tokens=6, temperature=0.9)
EOS = [2]


@pytest.fixture(scope="module")
def networks():
    return build(0), build(1, hidden_size=24, num_hidden_layers=1)


def numbered(*numbers):
    """Rows with their numbers in the data."""
    return stack(*(ragged_row(number) for number in numbers)) | {"row_numbers": torch.tensor(numbers)}


def texts_of(batch):
    return [(each.ids.tolist(), each.trained.tolist()) for each in trained_documents(batch)]


def test_the_last_reply_is_written_by_the_sampler_and_all_else_stays(networks):
    batch, student = numbered(4, 9, 1), networks[0]
    own = OwnReplies(0.5, SAMPLING, seed=3).put_in(batch, 7, student, EOS)
    before, after = list(trained_documents(batch)), list(trained_documents(own))
    assert len(before) == len(after)
    num_written, total = 0, 0
    for old, new in zip(before, after, strict=True):
        if torch.equal(old.ids, new.ids):
            assert torch.equal(old.trained, new.trained)
            continue
        key = (3, 7, int(batch["row_numbers"][old.row]), old.number)
        (reply,) = Sampler(SAMPLING, EOS).sample(student, [prompt(old)], [[key]])
        assert new.ids.tolist() == [*prompt(old).tolist(), *reply.tokens.tolist()]
        assert new.trained.tolist() == list(range(len(prompt(old)), len(new.ids)))
        num_written, total = num_written + 1, total + len(reply.tokens)
    assert 0 < num_written < len(before) and own["num_written"] == num_written
    assert int(own["written"].sum()) == total and own["input_ids"].shape[1] % 64 == 0
    assert own["position_ids"][0].tolist() == [p for d in after for p in range(len(d.ids))] + list(
        range(own["input_ids"].shape[1] - sum(len(d.ids) for d in after))
    )


def test_choice_and_replies_hang_on_seed_step_and_place_alone(networks):
    student, rows = networks[0], (0, 1, 2, 5, 6, 8)

    def replies(*cut, seed=0, step=2, share=0.4):
        parts = [OwnReplies(share, SAMPLING, seed).put_in(numbered(*part), step, student, EOS) for part in cut]
        return [text for part in parts for text in texts_of(part)]

    whole = replies(rows)
    assert replies(rows[:2], rows[2:5], rows[5:]) == whole == replies(*((row,) for row in rows))
    assert replies(rows, seed=1) != whole and replies(rows, step=3) != whole
    assert replies(rows, share=0.0) == texts_of(numbered(*rows))
    assert all(new != old for new, old in zip(replies(rows, share=1.0), texts_of(numbered(*rows)), strict=True))


def test_a_prompt_ends_before_the_last_reply():
    ids = torch.arange(9)
    assert prompt(TrainedDocument(0, 0, ids, torch.tensor([2, 3, 6, 7]))).tolist() == [0, 1, 2, 3, 4, 5]
    assert prompt(TrainedDocument(0, 0, ids, torch.tensor([4, 5]))).tolist() == [0, 1, 2, 3]


def test_the_text_is_no_example_where_the_student_wrote_it(networks):
    """Loss and gradient of both kinds of documents against transformers on each alone, in float64."""
    student, teacher = (copy.deepcopy(network) for network in networks)
    own = OwnReplies(0.5, SAMPLING, seed=3).put_in(numbered(4, 9, 1), 7, student, EOS)
    batch, plain = without_labels_loss(prepare_batch(own)), copy.deepcopy(student)
    vocab_size = student.config.vocab_size
    sums, _ = run_teachers([teacher], [1.0], batch, vocab_size, lambda k: student_loss(student, batch, k, OBJECTIVE))
    sums.loss.backward()

    for each in (plain, teacher):
        each.set_attn_implementation("eager")
    t, w, loss, likelihood, start = OBJECTIVE.temperature, OBJECTIVE.labels_weight, 0.0, 0.0, 0
    for _, _, ids, trained in trained_documents(own):
        is_example = ~own["written"][0, start + trained]
        start += len(ids)
        logits = plain(input_ids=ids[None]).logits[0, trained - 1].double()
        with torch.no_grad():
            p = (teacher(input_ids=ids[None]).logits[0, trained - 1].double() / t).softmax(-1)
        q = (logits / t).softmax(-1)
        m = OBJECTIVE.beta * p + (1 - OBJECTIVE.beta) * q
        between = OBJECTIVE.beta * (p * (p / m).log()) + (1 - OBJECTIVE.beta) * (q * (q / m).log())
        nll = (-logits.log_softmax(-1).gather(1, ids[trained, None]).squeeze(1) * is_example).sum()
        loss, likelihood = loss + (1 - w) * t * t * between.sum() + w * nll, likelihood + nll
    loss.backward()
    assert float(sums.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(sums.nll) == pytest.approx(float(likelihood), rel=1e-5)
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def module(folder, share):
    return Distillation(
        Backbone(config=tiny_config()), Backbone(path=str(folder)), optimizer=sgd, objective=OBJECTIVE,
        schedule=Schedule("constant", warmup=0), on_policy_share=share, sampling=SAMPLING,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_one_step_is_the_same_under_any_cut_into_micro_batches(networks, tmp_path, share):
    save_model_folder(networks[1], None, tmp_path)
    trained, seen = [], []
    for size in (8, 4, 1):
        batches = [numbered(*range(i, i + size)) for i in range(0, 8, size)]
        student = module(tmp_path, share)
        log = student.step_metrics
        student.step_metrics = lambda totals, log=log: seen.append(log(totals)) or dict(seen[-1])
        trained.append(fit(student, batches, accumulate=8 // size).model.state_dict())
    for other in trained[1:]:
        for name, expected in trained[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-7, msg=name)
    metrics = seen[0]
    assert metrics["train/on_policy_tokens"] == pytest.approx(share, abs=0.3)
    assert 1 <= metrics["train/completion_length"] <= 6
    if share == 1.0:
        assert metrics["train/loss"] == metrics["train/divergence"] > 0
    else:
        assert metrics["train/loss"] > metrics["train/divergence"] > 0
