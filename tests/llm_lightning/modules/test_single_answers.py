"""KTO on single answers: the loss and its gradients by hand, the same as on pairs, and that they teach alone."""

import copy
import json

import pytest
import torch

from datamodules import DataError
from datamodules.encoding import tokenization
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.rewards import prepare_texts
from llm_lightning.modules import RewardModeling
from llm_lightning.modules.preference.checks import unbalanced
from llm_lightning.modules.reference import Reference
from llm_lightning.objectives.preference_optimization import PreferenceLoss
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.modules.test_preference_optimization import (
    CONFIG,
    PAIRS,
    logprob_of_text,
    module_of,
    network_of,
    ready,
    singles_of,
    thanks,
    trainer_of,
)

SINGLES = singles_of(PAIRS)
KL = 1.7


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Tokenize here: for a handful of records the start of other processes takes longest."""
    monkeypatch.setattr(tokenization, "available_cores", lambda: 1)


def losses_of(data, policy, other, **objective):
    """What a module makes of all rows of the data in one batch, with a KL that is given."""
    module = module_of("kto", objective=objective)
    module.model, module._reference, module._kl = policy, [Reference(policy, other)], torch.tensor(KL)
    (batch,) = ready(data).train_dataloader()
    losses, _ = module._losses(prepare_texts(batch))
    losses.total.backward()
    return losses, {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def by_hand(policy, other, tokenizer, beta, weights, sft):
    """KTO's sum over single texts by transformers' own network in float64, one after the other, with its gradients."""
    networks = [copy.deepcopy(network).double() for network in (policy, other)]
    total = torch.zeros((), dtype=torch.float64)
    for network in networks:
        network.set_attn_implementation("eager")
        network.zero_grad()
    for record in SINGLES:
        (logprob, length), (known, _) = (
            logprob_of_text(network, tokenizer, record["prompt"], record["completion"]) for network in networks
        )
        gain = beta * (logprob - known.detach()) - beta * KL
        value = 1 / (1 + torch.exp(-gain if record["label"] else gain))
        total = total + weights[not record["label"]] * (1 - value)
        total = total - (sft * logprob / length if record["label"] else 0.0)
    total.backward()
    return total.item(), {name: parameter.grad for name, parameter in networks[0].named_parameters()}


def test_loss_and_gradients_equal_those_of_single_texts_in_float64(pairs_of):
    policy, other = network_of(0), network_of(1)
    data = pairs_of(SINGLES)
    objective = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.6, "sft_weight": 0.4}
    losses, gradients = losses_of(data, policy, other, **objective)
    expected, by_text = by_hand(policy, other, data.tokenizer, 0.2, (1.3, 0.6), 0.4)
    assert losses.num_examples == 6 and losses.total.item() == pytest.approx(expected, rel=1e-5)
    for name, gradient in by_text.items():
        torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_the_answers_of_pairs_cost_the_same_one_by_one(pairs_of, share_prompts):
    of_pairs, gradients = losses_of(pairs_of(PAIRS, share_prompts=share_prompts), network_of(0), network_of(1))
    of_singles, others = losses_of(pairs_of(SINGLES), network_of(0), network_of(1))
    assert of_pairs.num_examples == of_singles.num_examples == 6
    assert of_singles.total.item() == pytest.approx(of_pairs.total.item(), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=2e-5, msg=name)
    sums, of_both = of_singles.scored.sums(), of_pairs.scored.sums()
    assert sums["pairs"] == 0 and of_both["pairs"] == 3
    for name in ("answers", "answers_right", "chosen_count", "rejected_reward", "chosen_moved"):
        assert float(sums[name]) == pytest.approx(float(of_both[name]), rel=1e-4, abs=1e-4), name


def test_an_answer_is_right_on_its_side_of_the_reference_point(pairs_of):
    losses, _ = losses_of(pairs_of(SINGLES), network_of(0), network_of(1), beta=0.2)
    rewards, counts = losses.scored.rewards, losses.scored.counts
    right = 0
    for place in counts.nonzero().flatten().tolist():
        above = rewards[place].item() > 0.2 * KL
        right += above if place % 2 == 0 else not above
    assert losses.scored.sums()["answers_right"] == right


def test_a_rule_is_learned_from_single_answers_alone(pairs_of, tmp_path):
    """Unseen single answers fall on their side of the reference point, and of unseen pairs the right one is better."""
    held_out = [tmp_path / "singles.jsonl", tmp_path / "unseen_pairs.jsonl"]
    for path, records in zip(held_out, (singles_of(thanks(30, 1)), thanks(30, 2)), strict=True):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    train = singles_of(thanks(96, 0))
    data = pairs_of(train, seq_len=256, batch_size=2, val_share=None, val_path=[str(path) for path in held_out])
    module = module_of("kto", lambda params: torch.optim.AdamW(params, lr=3e-3))
    torch.manual_seed(0)
    trainer = trainer_of(max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert (metrics["val/pairs"], metrics["val/answers"]) == (30, 120)
    assert metrics["val/accuracy"] > 0.95 and metrics["val/answer_accuracy"] > 0.9
    assert metrics["val/answer_accuracy_low"] > 0.83 and "train/accuracy" not in metrics


@pytest.mark.parametrize("labels", [[True], [False], [True, True, True], [True, False, False, True, False]])
def test_odd_numbers_and_one_label_train_and_validate(pairs_of, tmp_path, labels):
    records = [
        {"question": f"{i} or {i * i}?", "answer": f"It is {i}.", "label": label} for i, label in enumerate(labels)
    ]
    (tmp_path / "held_out.jsonl").write_text(json.dumps(records[0]) + "\n")
    data = pairs_of(records, seq_len=128, val_share=None, val_path=str(tmp_path / "held_out.jsonl"))
    module, trainer = module_of("kto"), trainer_of(max_steps=2, num_sanity_val_steps=0, val_check_interval=1)
    trainer.check_val_every_n_epoch = None
    if len(set(labels)) == 1:
        with pytest.warns(UserWarning, match=f"All {len(labels)} answers of the training data are "):
            trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, datamodule=data)
    metrics = trainer.callback_metrics
    assert module.step.num_skipped == 0 and metrics["val/loss"].isfinite() and metrics["val/answers"] == 1
    before = dict(module._reference[0].frozen.named_parameters())
    assert any(not torch.equal(weight, before[name]) for name, weight in module.model.named_parameters())


@pytest.mark.parametrize("kind", ["dpo", "orpo", "reward"])
def test_losses_of_pairs_refuse_them(pairs_of, kind):
    module = RewardModeling(Backbone(config=tiny_config(**CONFIG))) if kind == "reward" else module_of(kind)
    who = "RewardModeling" if kind == "reward" else f"model.objective.kind={kind}"
    data = pairs_of(SINGLES)
    with pytest.raises(DataError, match=f"holds single answers .* {who} needs pairs.*kind kto"):
        trainer_of(max_steps=1).fit(module, datamodule=data)
    module.check(data := pairs_of(SINGLES))
    with pytest.raises(DataError, match=f"{who} needs pairs"):
        data.check()


def test_a_balance_that_the_weights_do_not_make_up_for_is_said():
    assert unbalanced(PreferenceLoss("kto"), 100, 100) is None and unbalanced(PreferenceLoss("kto"), 100, 140) is None
    words = unbalanced(PreferenceLoss("kto"), 100, 900)
    assert "100 answers of the training data are desirable and 900 are not" in words
    assert "desirable_weight from 9 to 12 " in words
    assert unbalanced(PreferenceLoss("kto", desirable_weight=10.0), 100, 900) is None
    assert "from 0.111 to 0.148" in unbalanced(PreferenceLoss("kto"), 900, 100)
    assert "All 7 answers of the training data are undesirable" in unbalanced(PreferenceLoss("kto"), 0, 7)
