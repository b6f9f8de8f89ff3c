"""Distillation: students and teachers on packed rows against transformers on single documents, and under any cut."""

import copy
import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.heads import prepare_batch
from llm_lightning.modules import Distillation
from llm_lightning.modules.distillation.context import Context
from llm_lightning.modules.distillation.losses import likeliest, run_teachers, student_loss
from llm_lightning.modules.distillation.teacher_cache import CachedTeacher
from llm_lightning.modules.reference import Reference
from llm_lightning.modules.schedule import Schedule
from llm_lightning.objectives.distillation import DistillationLoss, head_distillation, linear_distillation
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config
from tests.llm_lightning.modules.test_pretraining import fit, ragged_row, sgd

OBJECTIVE = DistillationLoss("jensen_shannon", beta=0.4, temperature=1.5, labels_weight=0.2)


def build(seed, **config):
    torch.manual_seed(seed)
    return Backbone(config=tiny_config(**config)).build()


@pytest.fixture(scope="module")
def networks():
    """A student, and two teachers of other sizes, one with rows behind the vocabulary."""
    vocab_size = tiny_config().vocab_size
    return build(0), build(1, hidden_size=24, num_hidden_layers=1), build(2, vocab_size=vocab_size + 8)


def by_hand(student, teachers, weights, documents, objective):
    """Each document alone through transformers' own forward pass, token by token, in float64."""
    total, t = 0.0, objective.temperature
    vocab_size = student.config.vocab_size
    for ids in map(torch.tensor, documents):
        logits = student(input_ids=ids[None]).logits[0, :-1].double()
        with torch.no_grad():
            known = [teacher(input_ids=ids[None]).logits[0, :-1, :vocab_size].double() for teacher in teachers]
        p = sum(w * (each / t).softmax(-1) for w, each in zip(weights, known, strict=True))
        q = (logits / t).softmax(-1)
        m = objective.beta * p + (1 - objective.beta) * q
        between = objective.beta * (p * (p / m).log()) + (1 - objective.beta) * (q * (q / m).log())
        nll = -logits.log_softmax(-1).gather(1, ids[1:, None])
        total = total + (1 - objective.labels_weight) * t * t * between.sum() + objective.labels_weight * nll.sum()
    return total


@pytest.mark.parametrize("weights", [[1.0], [0.25, 0.75]])
@pytest.mark.parametrize("form", ["linear", "head"])
def test_packed_rows_equal_single_documents(networks, form, weights):
    student, *teachers = (copy.deepcopy(network) for network in networks)
    if form == "head":
        student.lm_head.bias = torch.nn.Parameter(torch.zeros(student.config.vocab_size))
    plain = copy.deepcopy(student)
    teachers = teachers[: len(weights)]
    documents = random_documents([9, 12, 5], 3)
    batch = prepare_batch(pack(documents, 32))
    vocab_size = student.config.vocab_size
    sums, balance = run_teachers(
        teachers, weights, batch, vocab_size, lambda known: student_loss(student, batch, known, OBJECTIVE)
    )
    sums.loss.backward()
    for each in (plain, *teachers):
        each.set_attn_implementation("eager")
    expected = by_hand(plain, teachers, weights, documents, OBJECTIVE)
    expected.backward()
    assert balance is None and float(sums.loss) == pytest.approx(float(expected), rel=1e-5)
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


HEADER = [1, 2, 3]


def with_headers(seed):
    """Three rows: some documents begin with what a context replaces, one has it in the loss, one is not trained."""
    rows = [pack([[*HEADER, *one] if i % 2 else one for i, one in enumerate(random_documents([5, 7, 4], seed + r))], 32)
            for r in range(3)]  # fmt: skip
    for row in rows:
        row["labels"][0, 5:9] = -100  # of the second document the header and one more
    rows[1]["labels"][0, :5] = -100
    rows[2]["labels"][0, 6:8] = rows[2]["input_ids"][0, 6:8]
    return stack(*rows)


def documents_of(batch):
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = [*(positions == 0).nonzero().squeeze(1).tolist(), len(ids)]
        yield from ((ids[a:b], labels[a:b]) for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("prefix", [1, 9])
def test_a_teacher_behind_a_context_equals_one_that_reads_each_document_alone(networks, prefix):
    student, teacher, _ = (copy.deepcopy(network) for network in networks)
    raw = with_headers(7)
    known_before = torch.arange(20, 20 + prefix)
    context = Context(known_before, torch.tensor(HEADER))
    read = context.before(raw)
    vocab_size = student.config.vocab_size
    plain = copy.deepcopy(student)
    batch = prepare_batch(raw)
    sums, _ = run_teachers([teacher], [1.0], read, vocab_size, lambda k: student_loss(student, batch, k, OBJECTIVE))
    sums.loss.backward()

    for each in (plain, teacher):
        each.set_attn_implementation("eager")
    total, t, w = 0.0, OBJECTIVE.temperature, OBJECTIVE.labels_weight
    for ids, labels in documents_of(raw):
        trained = (labels[1:] != -100).nonzero().squeeze(1) + 1
        if not len(trained):
            continue
        replaces = ids[:3].tolist() == HEADER and int(trained[0]) >= 3
        behind = torch.cat([known_before, ids[3:] if replaces else ids])
        shift = prefix - (3 if replaces else 0)
        logits = plain(input_ids=ids[None]).logits[0, trained - 1].double()
        with torch.no_grad():
            p = (teacher(input_ids=behind[None]).logits[0, trained - 1 + shift].double() / t).softmax(-1)
        q = (logits / t).softmax(-1)
        m = OBJECTIVE.beta * p + (1 - OBJECTIVE.beta) * q
        between = OBJECTIVE.beta * (p * (p / m).log()) + (1 - OBJECTIVE.beta) * (q * (q / m).log())
        nll = -logits.log_softmax(-1).gather(1, ids[trained, None])
        total = total + (1 - w) * t * t * between.sum() + w * nll.sum()
    total.backward()
    assert float(sums.loss) == pytest.approx(float(total), rel=1e-5)
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_rows_of_other_data_and_batches_without_a_loss_get_a_context_too():
    context = Context(torch.tensor([9, 8]), torch.zeros(0, dtype=torch.int64))
    padded = {
        "input_ids": torch.tensor([[0, 5, 6, 7], [4, 3, 2, 0]]),
        "labels": torch.tensor([[-100, -100, 6, 7], [-100, 3, -100, -100]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]),
    }
    read = context.before(padded)
    assert read["input_ids"][0, :8].tolist() == [9, 8, 5, 6, 7, 4, 3, 2]
    assert read["position_ids"][0, :8].tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert read["target_positions"].tolist() == [2, 3, 5]
    padded["labels"][:] = -100
    empty = context.before(padded)
    assert len(empty["target_positions"]) == 0 and empty["input_ids"].tolist() == [[9, 8]]


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_a_student_behind_its_adapter_is_its_own_teacher(target):
    """While the adapter moves, on the head too, the teacher stays what the network was."""
    student = build(3, tie_word_embeddings=False)
    before = copy.deepcopy(student)
    adapted = get_peft_model(student, LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    reference, raw = Reference(adapted), with_headers(3)
    read = Context(torch.arange(20, 25), torch.tensor(HEADER)).before(raw)
    batch, vocab_size = prepare_batch(raw), student.config.vocab_size

    def loss(teacher):
        adapted.zero_grad()
        sums, _ = run_teachers([teacher], [1.0], read, vocab_size, lambda k: student_loss(adapted, batch, k, OBJECTIVE))
        sums.loss.backward()
        return float(sums.loss), [p.grad for p in adapted.parameters() if p.requires_grad]

    (own, own_grads), (frozen, grads) = loss(reference), loss(before.eval())
    assert own == pytest.approx(frozen, rel=1e-6) and own_grads
    for ours, theirs in zip(own_grads, grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weights", [[1.0], [0.25, 0.75]])
def test_the_likeliest_of_all_tokens_are_the_teacher(networks, weights):
    """As a cache holds them; of fewer the loss is a lower bound, since the tail is one outcome."""
    student, *teachers = (copy.deepcopy(network) for network in networks)
    batch, vocab_size = prepare_batch(pack(random_documents([9, 12, 5], 3), 32)), student.config.vocab_size
    objective = DistillationLoss("reverse_kl", temperature=0.7, labels_weight=0.0)

    def loss(use):
        return run_teachers(teachers[: len(weights)], weights, batch, vocab_size, use)

    def cached(top_k):
        count = len(batch["targets"])
        chunk = loss(lambda known: likeliest(known, count, top_k, objective.temperature, vocab_size))
        assert chunk.logprobs.shape == chunk.ids.shape == (count, top_k)
        return student_loss(student, batch, CachedTeacher(*chunk), objective)[0].loss

    live = loss(lambda known: student_loss(student, batch, known, objective))[0].loss
    gradients = [torch.autograd.grad(each, student.lm_head.weight)[0] for each in (live, cached(vocab_size))]
    torch.testing.assert_close(cached(vocab_size), live, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
    losses = [float(cached(top_k)) for top_k in (1, 4, 16, vocab_size)]
    assert losses == sorted(losses)


@pytest.fixture
def nan_in_fresh_memory():
    """What torch allocates without filling it is full of NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("top_k", [3, 11])
def test_rows_behind_the_last_token_move_nothing(nan_in_fresh_memory, kind, top_k):
    """A chunk is longer than what is left; a cache says nothing of the rest."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 8, generator=g), torch.randn(11, 8, generator=g, requires_grad=True)
    logprobs, ids = torch.randn(5, 11, generator=g).log_softmax(-1).topk(top_k)
    targets, known = torch.arange(5), CachedTeacher(logprobs, ids)
    fused, plain = (
        torch.autograd.grad(sums.loss, weight)[0]
        for sums in (
            linear_distillation(hidden, weight, targets, known, DistillationLoss(kind)),
            head_distillation(hidden, lambda h: h @ weight.t(), targets, 11, known, DistillationLoss(kind)),
        )
    )
    torch.testing.assert_close(fused, plain)


@pytest.fixture(scope="module")
def teacher_folder(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_model_folder(networks[1], None, folder)
    return folder


def module(folder, **settings):
    """With weights that are the same each time."""
    return Distillation(
        Backbone(config=tiny_config()), Backbone(path=str(folder)), optimizer=sgd, objective=OBJECTIVE,
        schedule=Schedule("constant", warmup=0), **settings,
    )  # fmt: skip


def test_one_step_is_the_same_under_any_cut_into_micro_batches(teacher_folder):
    rows = [ragged_row(seed, trained=seed != 3) for seed in range(8)]
    weights = []
    for size in (8, 4, 1):
        batches = [stack(*rows[i : i + size]) for i in range(0, 8, size)]
        weights.append(fit(module(teacher_folder), batches, accumulate=8 // size).model.state_dict())
    for other in weights[1:]:
        for name, expected in weights[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_a_student_comes_near_its_teacher(teacher_folder):
    rows = [ragged_row(seed) for seed in range(4)] * 20

    def adam(params):
        return torch.optim.Adam(params, lr=1e-2)

    student = Distillation(
        Backbone(config=tiny_config()), Backbone(path=str(teacher_folder)), optimizer=adam,
        objective=DistillationLoss(labels_weight=0.0), schedule=Schedule("constant", warmup=0),
    )  # fmt: skip
    divergences = []
    log, student.step_metrics = student.step_metrics, lambda totals: divergences.append(
        totals["divergence"] / totals["tokens"]
    ) or log(totals)  # fmt: skip
    fit(student, rows)
    assert divergences[-1] < divergences[0] / 5


def test_the_teacher_is_in_no_checkpoint(teacher_folder):
    trained = fit(module(teacher_folder), [ragged_row(0)])
    assert len(trained._networks) == 1
    assert not any("teacher" in name or "_networks" in name for name in trained.state_dict())
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    assert len(checkpoint["llm_lightning"]["teachers"]) == 1
