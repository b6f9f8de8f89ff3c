"""RewardModeling: loss and gradients against the formula on single texts, its divisor, its metrics, its learning."""

import copy
import json
import math
import random

import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.rewards import prepare_texts
from llm_lightning.models.tasks import REWARD
from llm_lightning.modules import RewardModeling
from llm_lightning.modules.metrics.rewards import PreferenceMetrics
from llm_lightning.modules.schedule import Schedule
from llm_lightning.objectives.preference import BradleyTerry
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.modules.test_pretraining import fit, sgd

CONFIG = {"vocab_size": 448, "max_position_embeddings": 512}
OBJECTIVE = BradleyTerry(label_smoothing=0.1, centering=0.05, length_penalty=0.01, margin_scale=0.5)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer("smollm2")


@pytest.fixture
def data(tokenizer, tmp_path):
    """Serves pairs from a file."""
    from datamodules import PreferenceDataModule

    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def make(records, **settings):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        defaults = {"seq_len": 512, "batch_size": 1, "val_share": 0.0, "cache_dir": str(tmp_path / "cache")}
        module = PreferenceDataModule(
            path=str(tmp_path / "data.jsonl"), tokenizer=str(tmp_path / "tokenizer"), **defaults | settings
        )
        module.prepare_data()
        module.setup("fit")
        return module

    return make


PAIRS = [
    {
        "instruction": "¿Qué es esto, y qué no es?",
        "output_1": "Una prueba, nada más. 🙂",
        "output_2": "No.",
        "label": 1,
    },
    {"instruction": "2+2?", "output_1": "Five, or so they say.", "output_2": "4", "label": "2", "margin": 1.5},
    {
        "instruction": "Say it at length.",
        "output_1": "First this.",
        "output_2": "Then that.",
        "label": "tie",
        "margin": 3,
    },
]


def reference(network, tokenizer):
    """Mean loss over the pairs and its gradients, by transformers' own network on one conversation at a time."""
    network = copy.deepcopy(network)
    network.set_attn_implementation("eager")

    def reward(record, name):
        talk = [{"role": "user", "content": record["instruction"]}, {"role": "assistant", "content": record[name]}]
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
        return network(input_ids=ids).logits.squeeze(), ids.shape[1]

    total = 0.0
    for record in PAIRS:
        names = ("output_2", "output_1") if record["label"] == "2" else ("output_1", "output_2")
        (chosen, length), (rejected, other) = (reward(record, name) for name in names)
        z = chosen - rejected + 0.01 * (length - other)
        tie = record["label"] == "tie"
        z = z if tie else z - 0.5 * record.get("margin", 0.0)
        p = 0.5 if tie else 0.9
        loss = p * torch.log1p(torch.exp(-z)) + (1 - p) * torch.log1p(torch.exp(z)) + 0.05 * (chosen + rejected) ** 2
        (loss / len(PAIRS)).backward()
        total += float(loss) / len(PAIRS)
    return total, {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("share_prompts", [True, False])
def test_loss_and_gradients_equal_the_formula_on_single_texts(data, tokenizer, share_prompts):
    torch.manual_seed(0)
    network = Backbone(config=tiny_config(**CONFIG)).build(task=REWARD)
    torch.nn.init.normal_(network.score.weight)
    expected, gradients = reference(network, tokenizer)
    module = RewardModeling(Backbone(config=tiny_config(**CONFIG)), sgd, objective=OBJECTIVE)
    module.model = network
    (batch,) = list(data(PAIRS, share_prompts=share_prompts, seq_len=1024).train_dataloader())
    assert (len(batch["ties"]), int(batch["ties"].sum())) == (3, 1)
    assert bool(batch["spans"][:, 4].any()) == share_prompts
    batch = prepare_texts(batch)
    _, _, losses = module._losses(batch)
    assert losses.mean().item() == pytest.approx(expected, abs=1e-5)
    losses.mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(network.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_is_divided_by_its_pairs_however_it_is_cut(data, accumulate):
    """Rows hold different numbers of pairs; weights after one step are the same for 4x1, 2x2 and 1x4 rows."""
    records = [
        {"prompt": f"Which one, {i}?", "chosen": "yes " * (1 + i * i % 23), "rejected": f"no {i}"} for i in range(14)
    ]
    loader = data(records, seq_len=256, batch_size=4 // accumulate).train_dataloader()
    batches = list(loader)[:accumulate]
    assert sum(len(batch["input_ids"]) for batch in batches) == 4
    torch.manual_seed(0)
    module = RewardModeling(Backbone(config=tiny_config(**CONFIG)), sgd, schedule=Schedule("constant", warmup=0))
    module.configure_model()
    torch.manual_seed(1)
    torch.nn.init.normal_(module.model.score.weight)
    module.setup = lambda stage: None
    before = copy.deepcopy(module.model)
    fit(module, batches, accumulate, gradient_clip_val=None)
    rows = [prepare_texts(batch) for batch in data(records, seq_len=256, batch_size=4).train_dataloader()][:1]
    whole = RewardModeling(Backbone(config=tiny_config(**CONFIG)), sgd)
    whole.model = before
    _, _, losses = whole._losses(rows[0])
    losses.mean().backward()
    for name, parameter in before.named_parameters():
        step = module.model.get_parameter(name).detach() - parameter.detach()
        torch.testing.assert_close(step, -1e-2 * parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def known_rule(count, seed):
    """An answer with a word of thanks in it is better, wherever in the answer it stands and whatever else is said."""
    g = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "stone", "river", "cloud", "light"]
    for _ in range(count):
        polite, plain = (g.choices(words, k=g.randint(3, 7)) for _ in range(2))
        polite.insert(g.randint(0, len(polite)), "thanks")
        yield {"prompt": f"Question {g.randint(0, 10**9)}?", "chosen": " ".join(polite), "rejected": " ".join(plain)}


def test_it_learns_a_known_rule_and_judges_pairs_it_never_saw(data):
    torch.manual_seed(0)
    train = data(list(known_rule(160, 0)), template="chatml", batch_size=2)
    module = RewardModeling(
        Backbone(config=tiny_config(**CONFIG, hidden_size=64)), lambda params: torch.optim.AdamW(params, lr=3e-3)
    )
    module.setup = lambda stage: None
    batches = [batch for _ in range(4) for batch in train.train_dataloader()]
    fit(module, batches)
    module.model.eval()
    held_out = data(list(known_rule(100, 1)), template="chatml")
    with torch.no_grad():
        for batch in held_out.train_dataloader():
            module.validation_step(prepare_texts(batch), 0)
    metrics, normalization = module.evaluation.compute()
    assert metrics["pairs"] == 100 and metrics["accuracy"] > 0.95 and metrics["accuracy_low"] > 0.85
    assert normalization.num_answers == 200 and normalization.std > 0.1


def synthetic(temperature, count=20_000):
    """Pairs whose better answer wins with the probability that the rewards say, at a temperature of 1."""
    g = torch.Generator().manual_seed(0)
    difference = 2 * torch.randn(count, generator=g)
    wins = torch.rand(count, generator=g) < torch.sigmoid(difference / temperature)
    chosen = torch.where(wins, difference, -difference)
    batch = {
        "ties": torch.zeros(count, dtype=torch.bool),
        "chosen_lengths": torch.randint(1, 100, (count,), generator=g),
        "rejected_lengths": torch.randint(1, 100, (count,), generator=g),
        "chosen_scores": torch.full((count,), math.nan),
        "rejected_scores": torch.full((count,), math.nan),
    }
    return chosen, torch.zeros(count), batch


def test_calibration_is_right_on_known_probabilities():
    metrics = PreferenceMetrics()
    chosen, rejected, batch = synthetic(temperature=1.0)
    metrics.update(chosen, rejected, torch.zeros_like(chosen), batch)
    values, _ = metrics.compute()
    assert values["ece"] < 0.015
    assert all(abs(c - a) < 0.04 for c, a in zip(*metrics.reliability[:2], strict=True))
    assert sum(metrics.reliability.num_pairs) == 20_000

    # Twice as sure as it may be: by the integral over the differences it is off by 0.103 on average.
    chosen, rejected, batch = synthetic(temperature=2.0)
    metrics.update(chosen, rejected, torch.zeros_like(chosen), batch)
    values, _ = metrics.compute()
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    weight = torch.exp(-(grid**2) / 8) / torch.exp(-(grid**2) / 8).sum()
    expected = float((weight * (torch.sigmoid(grid.abs()) - torch.sigmoid(grid.abs() / 2))).sum())
    assert values["ece"] == pytest.approx(expected, abs=0.01) and expected > 0.08
    assert all(c > a for c, a in zip(*metrics.reliability[:2], strict=True) if c > 0.6)


def test_metrics_by_hand():
    metrics = PreferenceMetrics()
    batch = {
        "ties": torch.tensor([False, False, True, False]),
        "chosen_lengths": torch.tensor([9, 2, 5, 1]),
        "rejected_lengths": torch.tensor([1, 4, 5, 6]),
        "chosen_scores": torch.tensor([4.0, 3.0, math.nan, 9.0]),
        "rejected_scores": torch.tensor([1.0, 2.0, math.nan, -1.0]),
    }
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0, 3.0]), torch.tensor([1.0, 0.5, 7.0, -1.0])
    for rows in (slice(0, 2), slice(2, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        metrics.update(chosen[rows], rejected[rows], torch.tensor([1.0, 3.0]), part)
    values, normalization = metrics.compute()
    both = torch.cat([chosen, rejected]).double()
    assert values["loss"] == 2.0 and values["accuracy"] == pytest.approx(2 / 3)
    assert values["accuracy_if_longer"] == 1.0 and values["accuracy_if_shorter"] == 0.5
    assert values["margin"] == pytest.approx((1 - 0.5 + 4) / 3)
    assert (normalization.mean, normalization.std) == pytest.approx((both.mean().item(), both.std(correction=0).item()))
    # ranks of 2, 0, 3, 1, .5, -1 are 5 2 6 4 3 1, of the scores 4, 3, 9, 1, 2, -1: 5 4 6 2 3 1
    assert values["score_rank_correlation"] == pytest.approx(1 - 6 * (4 + 4) / (6 * 35), abs=1e-5)
    assert metrics.compute()[0] == {}


def test_a_head_that_starts_at_zero_is_half_right_in_training_and_in_validation(data):
    """Both responses of a pair have the same reward: neither right nor wrong."""
    module = RewardModeling(Backbone(config=tiny_config(**CONFIG)), sgd)
    module.model = Backbone(config=tiny_config(**CONFIG)).build(task=REWARD)
    (batch,) = list(data(PAIRS, seq_len=1024).train_dataloader())
    batch = prepare_texts(batch)
    module.training_step(batch, 0)
    totals = {name: float(value) for name, value in module.step.sums.items()}
    module.validation_step(batch, 0)
    assert module.step_metrics(totals | {"grad_norm": 1.0})["train/accuracy"] == 0.5
    assert module.evaluation_metrics("test")["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("name", "value"), [("label_smoothing", 0.5), ("label_smoothing", -0.1), ("centering", -1), ("length_penalty", -1)]
)
def test_an_impossible_objective_is_named(name, value):
    module = RewardModeling(Backbone(config=tiny_config()), objective=BradleyTerry(**{name: value}))
    with pytest.raises(UserError, match=rf"model\.objective\.{name}={value}"):
        module.check()
