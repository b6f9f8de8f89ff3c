"""The step itself: against torch and one whole batch in float64; by hand as by Lightning."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from datamodules import PromptDataModule
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules.gradients import gradient_norm
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.ppo import PPO
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.modules.ranks import Ranks
from llm_lightning.modules.schedule import Schedule
from llm_lightning.modules.step import OptimizerStep
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import Sampling

ROWS = 12
"""Row i has i trained tokens of 12: the first has none."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 8), nn.Tanh(), nn.Linear(8, 20)).double()


def rows():
    torch.manual_seed(1)
    ids, targets = torch.randint(20, (2, ROWS, 12))
    targets[torch.arange(12)[None] >= torch.arange(ROWS)[:, None]] = -100
    return ids, targets


def accumulate(model, step, cut, weight=1.0):
    """Backward passes over micro-batches of so many rows."""
    for ids, targets in zip(*(part.split(cut) for part in rows()), strict=True):
        loss = cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
        step.collect(loss=loss, tokens=(targets != -100).sum().double())
        (loss * weight).backward()


@pytest.mark.parametrize("clip_val", [None, 0.05])
@pytest.mark.parametrize("cut", [[12], [6, 6], [1, 11], [3, 4, 5], [1] * 12])
def test_how_rows_are_cut_into_micro_batches_does_not_matter(cut, clip_val):
    whole = network()
    ids, targets = rows()
    cross_entropy(whole(ids).flatten(0, 1), targets.flatten()).backward()
    norm = nn.utils.clip_grad_norm_(whole.parameters(), clip_val or math.inf)

    model, step = network(), OptimizerStep("tokens", 3)
    optimizer = torch.optim.SGD(model.parameters())
    accumulate(model, step, cut)
    totals = step.reduce(gradient_norm(optimizer), Ranks())
    assert step.finish(optimizer, totals, clip_val)
    assert totals.sums["tokens"] == sum(range(ROWS))
    assert totals.grad_norm == pytest.approx(float(norm), rel=1e-12)
    for own, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=0 if clip_val is None else 1e-9)
    assert step.sums == {}


@pytest.mark.parametrize("divided_by", [1.0, 4.0, float(sum(range(ROWS)))])
def test_what_is_divided_before_the_backward_pass_is_not_divided_again(divided_by):
    """By Lightning's count of micro-batches, by ranks, or by the very tokens, as PPO does."""
    gradients = []
    for already in (1.0, divided_by):
        model, step = network(), OptimizerStep("tokens", 3)
        optimizer = torch.optim.SGD(model.parameters())
        accumulate(model, step, [3, 4, 5], 1 / already)
        totals = step.reduce(gradient_norm(optimizer), Ranks(), already)
        step.finish(optimizer, totals, 0.1)
        gradients.append([totals.grad_norm, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-14)


def test_two_ranks_are_one():
    """Each has half of the rows and sees its own gradients; strategies average them."""
    halves = []
    for part in ([4, 2], [1, 5]):
        model, step = network(), OptimizerStep("tokens", 3)
        first = 0 if not halves else 6
        for ids, targets in zip(*(each[first : first + 6].split(part) for each in rows()), strict=True):
            loss = cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
            step.collect(loss=loss, tokens=(targets != -100).sum().double())
            loss.backward()
        halves.append((model, step))
    summed = torch.stack([torch.stack([step.sums[n].double() for n in ("loss", "tokens")]) for _, step in halves]).sum(
        0
    )
    for parameter, other in zip(halves[0][0].parameters(), halves[1][0].parameters(), strict=True):
        parameter.grad = (parameter.grad + other.grad) / 2
    model, step = halves[0]
    optimizer = torch.optim.SGD(model.parameters())
    totals = step.reduce(gradient_norm(optimizer), Ranks(2, lambda values: summed), 2)
    step.finish(optimizer, totals, None)
    alone, whole = network(), OptimizerStep("tokens", 3)
    accumulate(alone, whole, [12])
    optimizer = torch.optim.SGD(alone.parameters())
    expected = whole.reduce(gradient_norm(optimizer), Ranks())
    whole.finish(optimizer, expected, None)
    assert totals.grad_norm == pytest.approx(expected.grad_norm, rel=1e-12)
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in alone.parameters()])


def stepped(model, norm, **clip):
    """One step with gradients of a given norm; a loss of one token."""
    optimizer, step = torch.optim.SGD(model.parameters(), lr=1.0), OptimizerStep("tokens", 3)
    step.collect(loss=torch.tensor(2.0), tokens=torch.tensor(1.0))
    torch.manual_seed(2)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    total = torch.cat([g.flatten() for g in gradients]).norm()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient * (norm / total)
    totals = step.reduce(gradient_norm(optimizer), Ranks())
    assert step.finish(optimizer, totals, **clip)
    assert totals.grad_norm == pytest.approx(norm)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("norm", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
def test_clipping_is_that_of_torch(norm, algorithm):
    clip_val = 0.4 if algorithm == "value" else 1.0
    ours = stepped(network(), norm, clip_val=clip_val, clip_algorithm=algorithm)
    reference = network()
    for parameter, gradient in zip(reference.parameters(), stepped(network(), norm, clip_val=None), strict=True):
        parameter.grad = gradient
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    clip(reference.parameters(), clip_val)
    for own, other in zip(ours, reference.parameters(), strict=True):
        torch.testing.assert_close(own, other.grad, rtol=1e-12, atol=0)
    if algorithm == "value" and norm == 30.0:
        assert max(float(g.abs().max()) for g in ours) == clip_val


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_untouched(where):
    model, step = network(), OptimizerStep("tokens", 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def one(broken):
        accumulate(model, step, [6, 6])
        if broken and where == "loss":
            step.collect(loss=torch.tensor(math.nan), tokens=torch.tensor(1.0))
        elif broken:
            model[2].bias.grad[3] = math.inf
        done = step.finish(optimizer, step.reduce(gradient_norm(optimizer), Ranks()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return done

    assert one(broken=False)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    assert not one(broken=True)
    torch.testing.assert_close([model.state_dict(), optimizer.state_dict()], before, rtol=0, atol=0)
    step.check()
    assert one(broken=False) and step.num_skipped_in_a_row == 0
    assert not one(broken=True) and not one(broken=True)
    assert (step.num_skipped, step.num_skipped_in_a_row) == (3, 2)
    with pytest.raises(UserError, match=r"2 steps in a row were not finite \(model\.max_skipped_steps\)"):
        step.check()


def test_where_losses_are_divided_before_a_micro_batch_weighs_by_its_own_tokens_on_all_ranks():
    step = OptimizerStep("tokens", 3)
    step.collect(loss=torch.tensor(8.0), tokens=torch.tensor(100.0))
    step.collect(loss=torch.tensor(8.0), tokens=torch.tensor(3.0))
    assert float(step.newest_weight(Ranks())) == pytest.approx(1 / 3)
    assert float(step.newest_weight(Ranks(2, lambda tokens: tokens + 5))) == pytest.approx(2 / 8)
    step.collect(loss=torch.tensor(0.0), tokens=torch.tensor(0.0))
    assert float(step.newest_weight(Ranks())) == 1.0


class ByHand(PPO):
    """Keeps what it trained on."""

    def evaluate(self, experience):
        super().evaluate(experience)
        self.experience = experience


class ByLightning(PPO):
    """The same losses of the same micro-batches, in Lightning's own loop."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = True

    def training_step(self, rows, batch_idx):
        loss, _ = self.loss(self.experience, rows, Averages(self.device))
        self.step.collect(loss=loss, tokens=self.experience.mask[rows].sum().double())
        return loss

    def step_metrics(self, totals):
        self.norm = totals["grad_norm"]
        return {"train/loss": totals["loss"] / totals["tokens"]}


def length(prompts, completions, columns):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("clip_val", [None, 0.01])
def test_a_step_by_hand_is_that_of_lightning(policy_folder, prompts_file, tmp_path, clip_val):
    def module(kind):
        seed_everything(1, verbose=False)
        made = kind(
            Backbone(path=str(policy_folder)), {"length": Reward(length)}, lambda p: torch.optim.SGD(p, lr=0.5),
            rollout=Rollout(Sampling(12), 2), advantages=Advantages("rloo"), kl=KLPenalty(0.0),
            update=Update(1, micro_batch_tokens=60), schedule=Schedule("constant", warmup=0),
        )  # fmt: skip
        made.gradient_clip_val = clip_val
        return made

    def fit(module, data, **settings):
        trainer = Trainer(
            accelerator="cpu", devices=1, max_steps=1, logger=False, default_root_dir=tmp_path,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, **settings,
        )  # fmt: skip
        trainer.fit(module, data)
        return module

    data = PromptDataModule(
        str(prompts_file), tokenizer=str(policy_folder), batch_size=4, cache_dir=str(tmp_path / "cache")
    )
    by_hand = module(ByHand)
    norms = []
    by_hand.finish = lambda metrics, *args: norms.append(metrics["train/grad_norm"])
    fit(by_hand, data, use_distributed_sampler=False)
    groups = by_hand.experience.groups(range(8), 60)
    assert len(groups) > 2

    by_lightning = module(ByLightning)
    by_lightning.experience = by_hand.experience
    loader = DataLoader(groups, batch_size=None, collate_fn=list)
    fit(by_lightning, loader, accumulate_grad_batches=len(groups), gradient_clip_val=clip_val)
    assert by_lightning.norm == pytest.approx(norms[0], rel=1e-5)
    start = Backbone(path=str(policy_folder)).build()
    assert not torch.equal(by_hand.model.lm_head.weight, start.lm_head.weight)
    for own, other in zip(by_hand.model.parameters(), by_lightning.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
