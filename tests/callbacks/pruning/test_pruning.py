import pytest
import torch
from lightning.pytorch import Callback

from callbacks import CallbackError, ModelFolder, Pruning, RunCheckpoint, StopWhen
from callbacks.pruning import (
    NM,
    Constant,
    Cubic,
    Linear,
    Magnitude,
    Movement,
    OneShot,
    Structured,
    Taylor,
    Unstructured,
    Wanda,
)
from callbacks.pruning.criteria import Criterion
from callbacks.stopping.conditions import NoImprovement
from tests.callbacks.pruning.fits import Chosen, fit
from tests.callbacks.tiny_llama import TinyData, tiny_network, tiny_trainer

TWENTY = {"max_steps": 20, "val_check_interval": 10}


def prunable(network):
    return {n: p for n, p in network.named_parameters() if "_proj" in n}


@pytest.mark.parametrize("criterion", [Magnitude, Wanda, Taylor, Movement])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sparsity_follows_its_schedule_and_zeros_survive_adamw(tmp_path, criterion, accumulate):
    schedule = Cubic(begin=2, end=12, interval=2)
    pruning = Pruning(Unstructured(0.6), criterion(), schedule)
    settings = {"max_steps": 20, "val_check_interval": 10 * accumulate, "accumulate_grad_batches": accumulate}
    module, zeros = fit(tmp_path, pruning, **settings)
    due, expected = 0.0, []
    for step in range(1, 21):
        if schedule.is_due(step - 1, step):
            due = schedule.fraction(step)
        expected.append(0.6 * due)
    assert zeros.sparsities == pytest.approx(expected, abs=1e-3)
    weights = prunable(module.model)
    assert all(int((p == 0).sum()) == round(0.6 * p.numel()) for p in weights.values())
    others = [p for n, p in module.model.named_parameters() if n not in weights]
    assert all(p.count_nonzero() == p.numel() for p in others), "embeddings, norms and head are spared"


@pytest.mark.parametrize("n_m", [(2, 4), (4, 8)])
def test_n_m_is_exact_in_every_group_and_never_too_much_on_the_way(tmp_path, n_m):
    n, m = n_m
    pruning = Pruning(NM(n, m), schedule=Linear(begin=2, end=10, interval=2))
    module, zeros = fit(tmp_path, pruning, max_steps=12)
    expected = [0, 0, 0, 0.125, 0.125, 0.25, 0.25, 0.375, 0.375, 0.5, 0.5, 0.5]
    assert zeros.sparsities == pytest.approx(expected, abs=1e-3)
    for weight in prunable(module.model).values():
        assert ((weight != 0).view(-1, m).sum(1) == n).all()


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
        (torch.optim.Muon, {"weight_decay": 0.1}),
        (torch.optim.Rprop, {}),
    ],
)
def test_zeros_survive_other_optimizers(tmp_path, optimizer, settings):
    """Muon mixes the weights of a matrix, so that a gradient of zero is not enough there."""
    pruning = Pruning(Unstructured(0.5), schedule=Constant(begin=2))
    _, zeros = fit(tmp_path, pruning, module=Chosen(optimizer, **settings), max_steps=6)
    assert zeros.sparsities[-1] == 0.5


def test_one_shot_leaves_the_weights_as_they_were_until_it_prunes(tmp_path):
    pruning = Pruning(Unstructured(0.5), schedule=OneShot(end=4))
    torch.manual_seed(0)
    module = Chosen(weight_decay=0.5)
    module.model = tiny_network()
    before = {n: p.clone() for n, p in module.model.named_parameters()}
    fit(tmp_path, pruning, module=module, max_steps=4)
    for name, weight in module.model.named_parameters():
        kept = pruning.masks.kept.get(name, torch.tensor(True))
        assert torch.equal(weight, before[name] * kept)
    # With steps left, it trains again.
    trained = Pruning(Unstructured(0.5), schedule=OneShot(end=4))
    module, _ = fit(tmp_path, trained, max_steps=8)
    assert (module.model.lm_head.weight - tiny_like(module).lm_head.weight).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("structure", "blocks"),
    [
        (Unstructured(0.5), [{0}, {0, 1}]),
        (NM(), [{0}, {0, 1}]),
        (Unstructured(0.5, "network"), [{0, 1}, {0, 1}]),
        (Structured(channels=0.5), [{0, 1}, {0, 1}]),
    ],
)
def test_one_shot_goes_from_the_first_block_to_the_last_where_blocks_do_not_compete(tmp_path, structure, blocks):
    """Two blocks in two steps: what the second one is judged by has passed through what is left of the first."""
    pruning, seen = Pruning(structure, schedule=OneShot(end=2), num_batches=0), []

    class Watch(Callback):
        def on_train_batch_end(self, *_):
            seen.append({int(name.split(".")[2]) for name in pruning.masks.kept})

    fit(tmp_path, pruning, Watch(), max_steps=2)
    assert seen == blocks
    assert pruning.sparsity == pytest.approx(0.5, abs=1e-3) or isinstance(structure, Structured)


def test_early_stopping_begins_anew_when_the_masks_change(tmp_path):
    """The dense network is far better, and neither ends the run nor is put back."""
    pruning = Pruning(Unstructured(0.9), Magnitude(), Constant(begin=4), num_batches=0)
    stopping = StopWhen([NoImprovement(patience=3)], restore_best=True)
    module, _ = fit(tmp_path, pruning, stopping, module=Chosen(lr=1e-5), max_steps=8, val_check_interval=1)
    assert module.trainer.global_step == 8 or stopping.conditions[0].best_step > 4
    assert stopping._best.step > 4
    weights = prunable(module.model)
    assert all(int((p == 0).sum()) == round(0.9 * p.numel()) for p in weights.values())


def tiny_like(module):
    from lightning.pytorch import seed_everything

    seed_everything(1, verbose=False)
    return tiny_network()


def test_sensitive_layers_are_given_less_and_the_whole_stays_exact(tmp_path):
    pruning = Pruning(Unstructured(0.5, layers="sensitivity"), schedule=Constant(begin=3))
    module, zeros = fit(tmp_path, pruning, max_steps=5)
    targets = [pruning.structure.targets[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1)]
    assert targets[0] != targets[1] and abs(targets[0] - targets[1]) == pytest.approx(0.16)
    assert zeros.sparsities[-1] == pytest.approx(0.5, abs=1e-3)
    for i, target in enumerate(targets):
        weight = module.model.model.layers[i].mlp.up_proj.weight
        assert (weight == 0).float().mean() == pytest.approx(target, abs=1e-3)


def test_comparing_in_the_whole_network_is_exact_too(tmp_path):
    pruning = Pruning(Unstructured(0.4, compare="network"), Magnitude(), Constant(begin=3))
    module, zeros = fit(tmp_path, pruning, max_steps=4)
    assert zeros.sparsities[-1] == pytest.approx(0.4, abs=1e-4)
    shares = {float((p == 0).float().mean()) for p in prunable(module.model).values()}
    assert len(shares) > 5


def test_patterns_choose_what_is_pruned(tmp_path):
    pruning = Pruning(
        Unstructured(0.5), Magnitude(), Constant(begin=1), include=["*.mlp.*", "lm_head.*"], exclude=["*.0.mlp.up*"]
    )
    module, _ = fit(tmp_path, pruning, max_steps=2)
    pruned = {n for n, p in module.model.named_parameters() if (p == 0).any()}
    assert pruned == {
        "lm_head.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }


class Tokens(Chosen):
    tokens_seen = 0

    def training_step(self, batch, batch_idx):
        self.tokens_seen += batch["input_ids"].numel()
        return super().training_step(batch, batch_idx)


def test_a_schedule_in_tokens(tmp_path):
    pruning = Pruning(Unstructured(0.5), schedule=Linear(begin=64, end=256, interval=64, unit="tokens"))
    _, zeros = fit(tmp_path, pruning, module=Tokens(), max_steps=10)  # 32 tokens a step
    assert zeros.sparsities == pytest.approx([0, 0, 0, 1 / 6, 1 / 6, 1 / 3, 1 / 3, 0.5, 0.5, 0.5], abs=1e-3)


class Judged(Chosen):
    def __init__(self, losses):
        super().__init__()
        self.script = iter(losses)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log("val/loss", next(self.script))


def test_the_guard_holds_and_goes_on(tmp_path):
    """Validations every second step: dense 2.0, then fine, twice too high, fine again."""
    losses = [2.0, 2.05, 2.3, 2.25, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1]
    pruning = Pruning(Unstructured(0.8), Magnitude(), Linear(begin=2, end=10, interval=1), max_loss_increase=0.1)
    _, zeros = fit(tmp_path, pruning, module=Judged(losses), max_steps=20, val_check_interval=2)
    #        step: 1  2  3    4    5    6   held from 7 to 10      11   12   13   14
    expected = [0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, *[0.8] * 6]
    assert zeros.sparsities == pytest.approx(expected, abs=1e-3)
    assert pruning.guard.kept_sparsity == pytest.approx(0.8, abs=1e-3)
    text = (tmp_path / "pruning.txt").read_text()
    assert "80.0%" in text and "held for 4 steps" in text and "could keep: 80.0%" in text


def test_the_guard_reports_what_it_could_keep_where_the_loss_does_not_recover(tmp_path):
    losses = [2.0, 2.05, float("nan"), 2.5, 2.5]
    pruning = Pruning(Unstructured(0.8), Magnitude(), Linear(begin=2, end=10, interval=1), max_loss_increase=0.1)
    fit(tmp_path, pruning, module=Judged(losses), max_steps=10, val_check_interval=2)
    assert pruning.sparsity == pytest.approx(0.4, abs=1e-3)
    text = (tmp_path / "pruning.txt").read_text()
    assert "could keep: 20.0%" in text and "40.0%" in text and "ended before the schedule" in text


def test_the_guard_holds_where_there_was_no_validation_before_pruning(tmp_path):
    pruning = Pruning(Unstructured(0.8), Magnitude(), Linear(begin=1, end=9, interval=1), max_loss_increase=0.1)
    _, zeros = fit(tmp_path, pruning, module=Judged([2.0] * 9), max_steps=12, val_check_interval=4)
    assert zeros.sparsities[3] == 0 and zeros.sparsities[4] > 0


def test_a_report_and_a_picture_and_a_best_that_begins_anew(tmp_path):
    pruning = Pruning(Unstructured(0.5), schedule=Cubic(begin=4, end=8, interval=2))
    module, _ = fit(tmp_path, pruning, ModelFolder(), measured=True, max_steps=12, val_check_interval=3)
    text = (tmp_path / "pruning.txt").read_text()
    assert all(word in text for word in ("50.0%", "dense", "pruned", "perplexity", "decode tokens/s", "no speed"))
    assert (tmp_path / "pruning.png").read_bytes().startswith(b"\x89PNG")
    from transformers import AutoModelForCausalLM

    names = ("last", "best", "dense")
    last, best, dense = (AutoModelForCausalLM.from_pretrained(tmp_path / "model" / n) for n in names)
    shares = [(m.model.layers[0].mlp.up_proj.weight == 0).float().mean() for m in (last, best, dense)]
    assert shares == [0.5, 0.5, 0]
    assert torch.equal(last.lm_head.weight, module.model.lm_head.weight)


@pytest.mark.parametrize(
    ("pruning", "words"),
    [
        (lambda: Pruning(NM(2, 5)), ["NM", "5", "does not divide", "32"]),
        (lambda: Pruning(Unstructured(0.5), include=["*.experts.*"]), ["include", "'*.experts.*'", "matches no"]),
        (lambda: Pruning(Unstructured(0.5), exclude=["lm_hed"]), ["exclude", "'lm_hed'"]),
        (lambda: Pruning(Unstructured(0.5), include=["*.embed_tokens.*"]), ["embedding", "Magnitude"]),
        (lambda: Pruning(Structured(kv_groups=0.1)), ["kv_groups=0.1", "2", "removes some"]),
        (lambda: Pruning(Structured(layers=0.5), Magnitude()), ["layers", "Wanda or Taylor"]),
        (lambda: Pruning(Structured(channels=0.5), Movement()), ["Movement", "Structured", "criterion Taylor"]),
        (lambda: Pruning(Unstructured(0.5, layers="sensitivity"), Movement()), ["Movement", "Unstructured", "Taylor"]),
        (lambda: Pruning(Structured(channels=0.5), exclude=["*.0.mlp.*"]), ["layers.0.mlp.gate_proj", "exclude"]),
        (lambda: Pruning(Unstructured(0.5), schedule=Cubic(2, 50)), ["end=50", "last step, 10"]),
    ],
)
def test_settings_that_do_not_fit_the_network_are_named_before_a_step(tmp_path, pruning, words):
    with pytest.raises(CallbackError) as error:
        fit(tmp_path, pruning(), max_steps=10)
    assert all(word in str(error.value) for word in words), error.value


def test_wanda_that_has_seen_nothing_says_so():
    with pytest.raises(CallbackError, match="no batch"):
        Wanda().score(type("Weight", (), {"name": "a"})())


def test_a_criterion_of_ones_own(tmp_path):
    class Reverse(Criterion):
        def score(self, weight):
            return 1 / weight.value.float().abs()

    pruning = Pruning(Unstructured(0.1), Reverse(), OneShot(end=1))
    module, _ = fit(tmp_path, pruning, max_steps=1)
    weight = module.model.model.layers[0].mlp.up_proj.weight
    assert weight.abs().max() < tiny_like(module).model.layers[0].mlp.up_proj.weight.abs().max()


def test_resuming_and_other_settings(tmp_path):
    pruning = Pruning(Unstructured(0.5), Magnitude(), Constant(begin=2))
    fit(tmp_path, pruning, RunCheckpoint(), enable_checkpointing=True, max_steps=3)
    checkpoint = tmp_path / "checkpoints" / "step=3.ckpt"
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["Pruning"]
    entry = state["masks"]["model.layers.0.mlp.up_proj.weight"]
    assert entry["shape"] == [64, 32] and entry["bits"].numel() == 64 * 32 // 8
    other = Pruning(Unstructured(0.5), Magnitude(), Constant(begin=2), exclude=["*.mlp.*"])
    trainer = tiny_trainer(tmp_path, callbacks=[other], enable_checkpointing=True, max_steps=5)
    with pytest.raises(CallbackError, match=r"mlp\.\w+_proj.*--resume false"):
        trainer.fit(Chosen(), TinyData(), ckpt_path=checkpoint, weights_only=True)
