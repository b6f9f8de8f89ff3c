"""CausalPretraining through a real Trainer: against a plain loop, and whatever the micro-batches."""

import pytest
import torch
from lightning.pytorch import Trainer

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config


def sgd(params):
    return torch.optim.SGD(params, lr=1e-2)


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)


class Recorder(CausalPretraining):
    """Keeps the loss of each optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.norms = [], []

    def step_metrics(self, totals):
        metrics = super().step_metrics(totals)
        self.losses.append(metrics["train/loss"])
        self.norms.append(metrics["train/grad_norm"])
        return metrics


def fit(module, batches, accumulate=1, **settings):
    torch.manual_seed(0)
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "gradient_clip_val": 1.0}
    trainer = Trainer(
        **defaults | settings,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module


def module(optimizer=adamw, schedule=None, **settings):
    return Recorder(Backbone(config=tiny_config()), optimizer, schedule or Schedule("constant", warmup=0), **settings)


def ragged_row(seed, trained=True):
    """A row of three documents whose trained share differs from row to row."""
    row = pack(random_documents([5 + seed % 7, 12, 3], seed), 32)
    row["labels"][0, : 1 + seed % 11] = -100
    if not trained:
        row["labels"][:] = -100
    return row


def test_fifty_steps_equal_a_plain_loop():
    """transformers' own loss and torch's own clipping, scheduler and AdamW on the same batches."""
    batches = [stack(*(pack(random_documents([32], 2 * i + j), 32) for j in range(2))) for i in range(50)]
    schedule = Schedule("cosine", warmup=5, min_ratio=0.1)
    ours = fit(module(schedule=schedule), batches)

    torch.manual_seed(0)
    network = Backbone(config=tiny_config(), attention="sdpa").build()
    decayed = [p for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in network.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0}], lr=1)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule.factor(step, 50)
        loss = network(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    torch.testing.assert_close(ours.losses, losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.norms, norms, rtol=1e-3, atol=1e-3)
    assert losses[0] != pytest.approx(losses[-1], abs=1e-2)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_micro_batches_do_not_matter(clip):
    """1x8 = 2x4 = 8x1 although the rows have different numbers of trained tokens, and one has none."""
    rows = [ragged_row(i, trained=i != 5) for i in range(16)]
    results = []
    for size in (8, 4, 1):
        batches = [stack(*rows[i : i + size]) for i in range(0, 16, size)]
        trained = fit(module(sgd), batches, accumulate=8 // size, gradient_clip_val=clip)
        assert len(trained.losses) == 2
        results.append([trained.losses, trained.norms, [p.detach() for p in trained.model.parameters()]])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_a_masked_micro_batch_changes_nothing():
    rows = [ragged_row(i) for i in range(3)]
    without = fit(module(sgd), rows, accumulate=3)
    masked = [rows[0], ragged_row(9, trained=False), *rows[1:]]
    with_it = fit(module(sgd), masked, accumulate=4)
    assert with_it.losses == pytest.approx(without.losses, rel=1e-6)
    for a, b in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_step_of_masked_micro_batches_moves_nothing():
    trained = fit(module(adamw), [ragged_row(1, trained=False)])
    torch.manual_seed(0)
    start = Backbone(config=tiny_config()).build()
    norms = [n for n, p in start.named_parameters() if p.ndim < 2]
    for name in norms:  # matrices decay, as after any step
        torch.testing.assert_close(trained.model.get_parameter(name), start.get_parameter(name))


class Poisoned(Recorder):
    """Its loss is NaN at given micro-batches."""

    bad: tuple[int, ...] = ()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx in self.bad else loss


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    rows = [ragged_row(i) for i in range(4)]
    poisoned = Poisoned(Backbone(config=tiny_config()), adamw, Schedule("constant", warmup=0))
    poisoned.bad = (1,)
    fit(poisoned, rows)
    clean = fit(module(), [rows[0], *rows[2:]])
    assert poisoned.step.num_skipped == 1
    assert poisoned.losses == clean.losses
    for a, b in zip(poisoned.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_too_many_in_a_row_stop_the_run():
    poisoned = Poisoned(Backbone(config=tiny_config()), adamw, Schedule("constant", warmup=0), max_skipped_steps=3)
    poisoned.bad = (0, 2, 3, 4)
    with pytest.raises(UserError, match="3 steps in a row"):
        fit(poisoned, [ragged_row(i) for i in range(8)])
    assert poisoned.step.num_skipped == 4


def test_no_gradient_is_alive_during_a_forward_pass():
    """Memory is highest at the end of the forward pass; the last step's gradients must not add to it."""

    class Watching(Recorder):
        alive = 0

        def training_step(self, batch, batch_idx):
            self.alive += sum(p.grad is not None for p in self.model.parameters())
            return super().training_step(batch, batch_idx)

    watching = Watching(Backbone(config=tiny_config()), adamw, Schedule("constant", warmup=0))
    fit(watching, [ragged_row(i) for i in range(3)])
    assert len(watching.losses) == 3 and watching.alive == 0


def test_it_learns():
    """The same 8 rows again and again are learned by heart; a frozen copy of the run does not move."""
    rows = [pack(random_documents([32], i), 32) for i in range(8)]
    trained = fit(module(lambda p: torch.optim.AdamW(p, lr=1e-2)), [stack(*rows)] * 60)
    assert trained.losses[-1] < 0.5 * trained.losses[0]


def test_norms_biases_and_embeddings_do_not_decay():
    trained = module()
    trained.model = Backbone(config=tiny_config(attention_bias=True)).build()
    from llm_lightning.modules.decay import decay_groups

    decayed, rest = decay_groups(trained.model)
    names = {id(p): n for n, p in trained.model.named_parameters()}
    assert all(names[id(p)].endswith("proj.weight") for p in decayed["params"])
    assert rest["weight_decay"] == 0.0
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"} <= {
        names[id(p)] for p in rest["params"]
    }
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses():
    rows = [stack(ragged_row(i), ragged_row(i + 1)) for i in range(4)]
    plain = fit(module(), rows)
    compiled = Recorder(Backbone(config=tiny_config(), compile=True), adamw, Schedule("constant", warmup=0))
    fit(compiled, rows)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_activation_checkpointing_gives_the_same_losses():
    rows = [ragged_row(i) for i in range(4)]
    plain = fit(module(), rows)
    saved = Recorder(
        Backbone(config=tiny_config(), activation_checkpointing=True), adamw, Schedule("constant", warmup=0)
    )
    fit(saved, rows)
    assert saved.losses == pytest.approx(plain.losses, rel=1e-6)
    assert saved.model.is_activation_checkpointing
