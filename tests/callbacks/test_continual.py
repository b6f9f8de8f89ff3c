"""Weights near their start against loops in float64, on resume to the bit, and what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from callbacks import EWC, L2SP, CallbackError, Pruning, RandomState, RunCheckpoint
from callbacks.continual.fisher import pieces
from callbacks.pruning import NM
from tests.callbacks.tiny_llama import (
    BATCH_SIZE,
    Rows,
    TinyData,
    TinyModule,
    tiny_network,
    tiny_tokenizer,
    tiny_trainer,
)

OLD = ["the first old text", "another one, which is longer than a piece of it may be", "x", "the third"]
PIECE_LEN = 20


class Data(TinyData):
    def texts(self, path):
        assert path == "old"
        yield from OLD


class Module(TinyModule):
    """In float64, without dropout."""

    def __init__(self, optimizer=torch.optim.AdamW, learning_rate=0.02):
        super().__init__(learning_rate)
        self.optimizer = optimizer

    def configure_model(self):
        if self.model is None:
            torch.manual_seed(0)
            self.model = tiny_network().double()
            for layer in self.model.model.layers:
                layer.self_attn.attention_dropout = 0.0

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.learning_rate)


class Half(TinyModule):
    def configure_model(self):
        super().configure_model()
        self.model.to(torch.bfloat16)


class Adapted(TinyModule):
    def configure_model(self):
        super().configure_model()
        self.model = get_peft_model(self.model, LoraConfig(target_modules=["q_proj"]))


def fit(root, *callbacks, module=None, ckpt_path=None, **settings):
    module = module or TinyModule()
    torch.manual_seed(0)
    trainer = tiny_trainer(root, callbacks=list(callbacks), enable_checkpointing=True, **settings)
    trainer.fit(module, Data(), ckpt_path=ckpt_path, weights_only=True)
    return module


def ewc(strength=30.0, **settings):
    return EWC(strength, "old", piece_len=PIECE_LEN, **settings)


def importance_by_autograd(network):
    """F over its mean, from the gradients of log-likelihoods that are summed token by token."""
    pieces = [tiny_tokenizer()(text)["input_ids"] for text in OLD]
    pieces = [torch.tensor(ids[i : i + PIECE_LEN]) for ids in pieces for i in range(0, len(ids), PIECE_LEN)]
    squares, weights = [], list(network.parameters())
    for ids in (piece for piece in pieces if len(piece) > 1):
        logprobs = network.eval()(ids[None]).logits[0].log_softmax(-1)
        likelihood = sum(logprobs[t, token] for t, token in enumerate(ids[1:].tolist()))
        squares.append([gradient.square() for gradient in torch.autograd.grad(likelihood, weights)])
    means = [torch.stack(of_one).mean(0) for of_one in zip(*squares, strict=True)]
    mean = sum(each.sum() for each in means) / sum(each.numel() for each in means)
    return [each / mean for each in means]


@pytest.mark.parametrize(("optimizer", "accumulated"), [(torch.optim.SGD, 1), (torch.optim.AdamW, 2)])
@pytest.mark.parametrize(("make", "strength"), [(lambda: L2SP(7.0), 7.0), (ewc, 30.0)], ids=["l2sp", "ewc"])
def test_it_is_the_optimizer_and_then_the_proximal_step(tmp_path, make, strength, optimizer, accumulated):
    module, callback = Module(optimizer), make()
    module.configure_model()
    network = copy.deepcopy(module.model)
    start = copy.deepcopy(network)
    fisher = importance_by_autograd(start) if isinstance(callback, EWC) else [1.0] * len(list(start.parameters()))
    settings = {"accumulate_grad_batches": accumulated, "gradient_clip_val": 0.5, "log_every_n_steps": 3}
    fit(tmp_path, callback, module=module, max_steps=6, **settings)

    own, lr, rows = optimizer(network.train().parameters(), lr=0.02), 0.02, Rows(400)
    for step in range(6):
        for batch in range(step * accumulated, (step + 1) * accumulated):
            ids = torch.stack([rows[BATCH_SIZE * batch + i]["input_ids"] for i in range(BATCH_SIZE)])
            (network(ids, labels=ids).loss / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        own.step()
        own.zero_grad()
        with torch.no_grad():
            for weight, first, f in zip(network.parameters(), start.parameters(), fisher, strict=True):
                weight.copy_((weight + lr * strength * f * first) / (1 + lr * strength * f))
    for (name, found), expected in zip(module.model.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=name)
    moved = [(a - b).square() for a, b in zip(network.parameters(), start.parameters(), strict=True)]
    penalty = strength / 2 * sum(float((f * each.detach()).sum()) for f, each in zip(fisher, moved, strict=True))
    logged = module.trainer.callback_metrics
    assert float(logged["start/penalty"]) == pytest.approx(penalty, rel=1e-5)
    assert float(logged["start/distance"]) == pytest.approx(
        sum(float(each.detach().sum()) for each in moved) ** 0.5, rel=1e-5
    )
    assert penalty > 0 and all((each >= 0).all() for each in moved)


def test_importance_decides_who_stays(tmp_path):
    module, callback = Module(), ewc(300.0)
    module.configure_model()
    start = [weight.detach().clone() for weight in module.parameters()]
    fit(tmp_path, callback, module=module)
    moved = torch.cat([(a.detach() - b).abs().flatten() for a, b in zip(module.parameters(), start, strict=True)])
    fisher = torch.cat([callback.fisher[name].flatten() for name, _ in module.named_parameters()])
    assert float(fisher.mean()) == pytest.approx(1)
    needed = fisher > fisher.quantile(0.99)
    assert moved[needed].mean() < 0.3 * moved[fisher == 0].mean()  # embeddings of characters that no old text has


def test_to_look_at_old_texts_changes_nothing_of_the_training(tmp_path):
    plain, looked = fit(tmp_path / "a"), fit(tmp_path / "b", ewc(1e-30))
    assert looked.losses == plain.losses


@pytest.mark.parametrize("make", [lambda: L2SP(7.0), ewc])
def test_a_run_that_goes_on_has_the_start_of_its_first_step(tmp_path, make):
    straight = fit(tmp_path / "straight", make(), RandomState(), RunCheckpoint())
    fit(tmp_path / "run", make(), RandomState(), RunCheckpoint(), max_steps=4)
    checkpoint = tmp_path / "run" / "checkpoints" / "step=4.ckpt"
    resumed = fit(tmp_path / "run", callback := make(), RandomState(), RunCheckpoint(), ckpt_path=checkpoint)
    assert resumed.losses == straight.losses[4:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))
    saved = [
        torch.load(tmp_path / name / "checkpoints" / "step=10.ckpt", weights_only=True) for name in ("straight", "run")
    ]
    for key in ("start", "fisher") if isinstance(callback, EWC) else ("start",):
        assert all(torch.equal(saved[1][key][name], value) for name, value in saved[0][key].items()), key
    if isinstance(callback, L2SP):
        with pytest.raises(CallbackError, match="not what old texts need of it"):
            fit(tmp_path / "run", ewc(), ckpt_path=checkpoint)


def test_a_step_that_is_left_out_pulls_nothing(tmp_path):
    class Left(TinyModule):
        def configure_gradient_clipping(self, optimizer, *_, **__):
            if self.trainer.global_step == 3:
                self.kept = [weight.detach().clone() for weight in self.parameters()]
                optimizer.zero_grad(set_to_none=True)

    module = fit(tmp_path, callback := L2SP(50.0), module=Left(), max_steps=4)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), module.kept, strict=True))
    assert any((callback.start[name] != weight).any() for name, weight in module.named_parameters())


def test_bfloat16_weights_are_pulled_in_float32(tmp_path):
    module = fit(tmp_path, callback := ewc(1e6), module=Half())
    assert {value.dtype for value in callback.fisher.values()} == {torch.float32}
    for name, weight in module.named_parameters():
        needed = callback.fisher[name] > 1
        torch.testing.assert_close(weight[needed], callback.start[name][needed], rtol=1e-2, atol=1e-4)


def test_of_an_adapter_its_own_weights_are_kept_near(tmp_path):
    module = fit(tmp_path, callback := L2SP(1e4), module=Adapted())
    assert callback.start and all(".lora_" in name for name in callback.start)
    assert all(weight.abs().max() < 1e-3 for name, weight in module.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("callbacks", "module", "words"),
    [
        (lambda: [L2SP(1.0), ewc()], TinyModule, "name one of them"),
        (lambda: [L2SP(1.0), Pruning(NM(2, 4))], TinyModule, "leave one of them out"),
        (lambda: [ewc()], Adapted, "EWC: a new adapter changes nothing yet"),
    ],
)
def test_what_does_not_go_together(tmp_path, callbacks, module, words):
    with pytest.raises(CallbackError, match=words):
        fit(tmp_path, *callbacks(), module=module())


def test_data_that_read_no_texts(tmp_path):
    with pytest.raises(CallbackError, match="the run's DataModule reads no texts"):
        tiny_trainer(tmp_path, callbacks=[ewc()]).fit(TinyModule(), TinyData())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: L2SP(0.0), r"L2SP\.strength=0\.0 must be above 0"),
        (lambda: ewc(num_pieces=0), r"EWC\.num_pieces=0 is below 1"),
        (lambda: EWC(1.0, "old", piece_len=1), r"EWC\.piece_len=1 is below 2"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(CallbackError, match=words):
        make()


def test_the_first_pieces_are_read_and_single_tokens_are_none():
    tokens = {text: tiny_tokenizer()(text)["input_ids"] for text in OLD}
    found = [piece.tolist() for piece in pieces(OLD, tiny_tokenizer(), 100, PIECE_LEN)]
    assert sum(map(len, found)) == sum(len(ids) for ids in tokens.values()) - len(tokens["x"])
    assert found[0] == tokens[OLD[0]] and max(map(len, found)) == PIECE_LEN
    assert len(list(pieces(OLD, tiny_tokenizer(), 2, PIECE_LEN))) == 2
