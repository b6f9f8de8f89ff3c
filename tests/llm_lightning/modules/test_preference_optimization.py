"""PreferenceOptimization: losses and gradients against single texts, its divisor under any cut, and that it learns."""

import copy
import io
import json
import random

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.rewards import prepare_texts
from llm_lightning.modules import PreferenceOptimization
from llm_lightning.modules.preference.checks import unusual_beta, unusual_rate
from llm_lightning.modules.preference.displacement import Displacement, Watch
from llm_lightning.modules.reference import Reference
from llm_lightning.modules.schedule import Schedule
from llm_lightning.objectives.preference_optimization import KNOWN, Answers, PreferenceLoss
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.modules.test_pretraining import sgd

CONFIG = {"vocab_size": 448, "max_position_embeddings": 512}
PAIRS = [
    {"prompt": "¿Qué es esto, y qué no es?", "chosen": "Una prueba, nada más. 🙂", "rejected": "No."},
    {"prompt": "2+2?", "chosen": "It is 4", "rejected": "It is five, or so they say."},
    {"prompt": "Say it at length, and well.", "chosen": "First this.", "rejected": "Then that."},
]


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def network_of(seed=0, **changes):
    torch.manual_seed(seed)
    return Backbone(config=tiny_config(**CONFIG, **changes)).build()


def module_of(kind="dpo", optimizer=sgd, **settings):
    objective = PreferenceLoss(kind, **settings.pop("objective", {}))
    backbone = settings.pop("backbone", None) or Backbone(config=tiny_config(**CONFIG))
    return PreferenceOptimization(
        backbone, optimizer, objective=objective, schedule=Schedule("constant", warmup=0), **settings
    )


def logprob_of_text(network, tokenizer, prompt, answer):
    """By transformers' own network on one conversation: nats of the answer and of the end of its turn."""
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    before, whole = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (head, f"{head}{answer}<|im_end|>")
    )
    logits = network(input_ids=torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
    return logits[torch.arange(len(whole) - 1), whole[1:]][len(before) - 1 :].sum(), len(whole) - len(before)


def reference_losses(kind, policy, reference, tokenizer):
    """Mean loss over the pairs on single texts, and its gradients."""
    policy, reference = copy.deepcopy(policy), copy.deepcopy(reference)
    for network in (policy, reference):
        network.set_attn_implementation("eager")
    sides = []
    for side in ("chosen", "rejected"):
        found = [logprob_of_text(policy, tokenizer, pair["prompt"], pair[side]) for pair in PAIRS]
        with torch.no_grad():
            ref = [logprob_of_text(reference, tokenizer, pair["prompt"], pair[side])[0] for pair in PAIRS]
        sides.append(Answers(torch.stack([x for x, _ in found]), torch.tensor([n for _, n in found]), torch.stack(ref)))
    loss = PreferenceLoss(kind)
    losses = loss.of_pairs(*sides)
    losses.mean().backward()
    return losses.mean().item(), {name: p.grad for name, p in policy.named_parameters()}


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("kind", ["dpo", "ipo", "orpo", "simpo", "dpo_norm"])
def test_loss_and_gradients_equal_those_of_single_texts(pairs_of, kind, share_prompts):
    policy, other = network_of(0), network_of(1)
    pairs = ready(pairs_of(PAIRS, share_prompts=share_prompts))
    expected, gradients = reference_losses(kind, policy, other, pairs.tokenizer)
    module = module_of(kind)
    module.model = policy
    if KNOWN[kind].needs_reference:
        module._reference = [Reference(policy, other)]
    (batch,) = pairs.train_dataloader()
    assert bool(batch["spans"][:, 4].any()) == share_prompts
    loss = module.training_step(prepare_texts(batch), 0)
    assert loss.item() / 3 == pytest.approx(expected, abs=2e-5)
    (loss / 3).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(policy.get_parameter(name).grad, gradient, rtol=1e-3, atol=2e-5, msg=name)


def thanks(count, seed):
    """An answer that begins with a word of thanks is better, whatever else is said."""
    g = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "stone", "river", "cloud", "light"]
    for _ in range(count):
        polite, plain = (" ".join(g.choices(words, k=g.randint(2, 5))) for _ in range(2))
        yield {"prompt": f"Question {g.randint(0, 10**9)}?", "chosen": f"thanks {polite}", "rejected": plain}


def singles_of(pairs):
    """Both answers of each pair as records of their own."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def trainer_of(**settings):
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 1, "gradient_clip_val": 1.0}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**defaults | quiet | settings)


@pytest.mark.parametrize(("kind", "single"), [("dpo", False), ("kto", False), ("orpo", False), ("kto", True)])
def test_steps_are_the_same_however_they_are_cut(pairs_of, kind, single):
    """1 x 4, 2 x 2 and 4 x 1 rows, which hold different numbers of pairs, make the same steps; KTO's KL included."""
    records, found = singles_of(thanks(40, 0))[:-1] if single else list(thanks(40, 0)), []
    for accumulate in (1, 2, 4):
        pairs = pairs_of(records, seq_len=192, batch_size=4 // accumulate)
        module = module_of(kind, lambda params: torch.optim.SGD(params, lr=0.05), objective={"beta": 0.5})
        torch.manual_seed(0)
        seen = []
        module.step_metrics = lambda totals, seen=seen, module=module: (
            seen.append(PreferenceOptimization.step_metrics(module, totals)) or dict(seen[-1])
        )
        trainer_of(accumulate_grad_batches=accumulate, max_steps=2).fit(module, datamodule=pairs)
        found.append((seen, {n: p.detach().clone() for n, p in module.model.named_parameters()}))
    (steps, weights), *others = found
    assert len(steps) == 2 and (kind != "kto" or steps[1]["train/kl"] != 0)
    for other_steps, other_weights in others:
        for one, two in zip(steps, other_steps, strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "kind", ["dpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KNOWN if kind != "dpo")]
)
def test_each_loss_learns_a_rule_and_tells_pairs_it_never_saw(pairs_of, kind, tmp_path):
    train, held_out = list(thanks(96, 0)), tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(record) + "\n" for record in thanks(60, 1)))
    pairs = pairs_of(train, seq_len=256, batch_size=2, val_share=None, val_path=str(held_out))
    module = module_of(kind, lambda params: torch.optim.AdamW(params, lr=3e-3))
    torch.manual_seed(0)
    trainer = trainer_of(max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=pairs)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["val/pairs"] == 60
    assert metrics["val/accuracy"] > 0.95 and metrics["val/accuracy_low"] > 0.85
    assert metrics["val/margin"] > 0 and metrics["val/chosen_reward"] > metrics["val/rejected_reward"]
    assert ("val/kl" in metrics) == (kind == "kto")
    assert ("val/chosen_moved" in metrics) == KNOWN[kind].needs_reference


def test_the_folder_ends_its_texts_at_the_end_of_a_turn(pairs_of, tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    module = module_of(backbone=Backbone(config=tiny_config(**CONFIG, tie_word_embeddings=False)))
    data = pairs_of(PAIRS, tokenizer=str(tmp_path / "tokenizer"))
    trainer_of(max_steps=1).fit(module, datamodule=data)
    assert data.tokenizer.eos_token == "<|endoftext|>"
    end = data.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():  # a network that writes nothing but ends
        module.model.get_input_embeddings().weight.fill_(1)
        for layer in module.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        module.model.lm_head.weight.zero_()[end] = 1
    module.save_model(tmp_path / "saved")
    saved, model = (kind.from_pretrained(tmp_path / "saved") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert saved.eos_token == "<|im_end|>" and saved.pad_token != saved.eos_token
    written = model.generate(**saved("Hello", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert written[0, -2:].tolist().count(end) == 1 and written[0, -1] == end


def test_a_single_pair_and_a_batch_of_ties_train_kto(pairs_of):
    records = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]
    trainer_of(max_steps=1).fit(one := module_of("kto"), datamodule=pairs_of(records))
    assert one.step.num_skipped == 0
    labelled = [{"instruction": f"Which, {i}?", "output_1": "yes", "output_2": "no", "label": "tie"} for i in range(4)]
    module = module_of("kto")
    trainer_of(max_steps=1).fit(module, datamodule=pairs_of(labelled))
    assert module.step.num_skipped == 0
    for name, weight in module._reference[0].frozen.named_parameters():  # nothing is learned of ties
        torch.testing.assert_close(module.model.get_parameter(name).detach(), weight.detach(), msg=name)


def test_a_reference_with_its_adapter_off_is_the_frozen_copy(pairs_of):
    network = network_of(0)
    (batch,) = ready(pairs_of(PAIRS)).train_dataloader()
    batch = prepare_texts(batch)
    module = module_of()
    module.model, module._reference = network, [Reference(network, network_of(0))]
    frozen = module._reference_logprobs(batch)
    adapter = Adapter(network, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    module.model, module._reference = adapter.model, [Reference(adapter.model)]
    assert torch.equal(module._reference_logprobs(batch), frozen)
    assert not torch.allclose(module._losses(batch)[0].scored.logprobs, frozen)


def test_displacement_is_said_once_and_again_after_a_recovery():
    watch = Watch(Displacement(limit=0.5, window=2))
    said = [watch.look(moved) for moved in (-9.0, -0.2, -0.3, -0.9, -0.9, 1.0, 0.0, -2.0)]
    assert [text is not None for text in said] == [False, True, False, True, False, False, False, True]
    assert "4.60 nats" in said[1]
    again = Watch(Displacement(limit=0.5, window=2))
    again.load_state_dict(watch.state_dict())
    assert again.look(-2.0) is None and again.is_displaced


def test_without_a_reference_answers_are_held_against_the_first_steps():
    levels = [-2.0, -3.0, -2.6, -2.8, -3.1, -3.4, -1.0, -2.0, -3.2, -4.0]  # these began at -2.5

    def said(watch, some):
        return [watch.look(level) for level in some]

    whole = said(Watch(Displacement(limit=0.5, window=2), has_reference=False), levels)
    assert [text is not None for text in whole] == [False] * 5 + [True] + [False] * 3 + [True]
    assert "0.75 nats a token below those of the first 2 steps" in whole[5] and "beta" not in whole[5]
    for cut in range(len(levels)):
        first, second = (Watch(Displacement(limit=0.5, window=2), has_reference=False) for _ in range(2))
        before = said(first, levels[:cut])
        torch.save(first.state_dict(), file := io.BytesIO())
        second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        assert before + said(second, levels[cut:]) == whole, cut


@pytest.mark.parametrize("kind", ["simpo", "orpo"])
def test_a_run_without_a_reference_says_that_chosen_answers_fall(pairs_of, capsys, kind):
    module = module_of(
        kind, lambda params: torch.optim.SGD(params, lr=2.0), displacement=Displacement("stop", limit=0.01, window=1)
    )
    torch.manual_seed(0)
    trainer_of(max_epochs=4, gradient_clip_val=None).fit(module, datamodule=pairs_of(list(thanks(40, 0)), seq_len=192))
    assert "nats a token below those of the first 1 steps" in capsys.readouterr().out
    began, moved = module.watch.began, module.watch.moved
    assert len(began) == 1 and moved[0] < -0.01 and module.watch.is_displaced
    checkpoint = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["llm_lightning"]["displacement"] == {"began": began, "moved": moved, "is_displaced": True}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": -1.0}, "beta=-1.0 must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5 must be at least 0 and below 0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect on kind=ipo"),
        ({"kind": "dpo", "target_margin_ratio": 0.1}, "target_margin_ratio has no effect on kind=dpo"),
        ({"kind": "kto", "desirable_weight": -1.0}, "desirable_weight=-1.0 must be at least 0"),
        ({"sft_weight": -0.1}, "sft_weight=-0.1 must be at least 0"),
    ],
)
def test_impossible_objectives_are_named(settings, words):
    module = PreferenceOptimization(Backbone(config=tiny_config()), objective=PreferenceLoss(**settings))
    with pytest.raises(UserError, match=words):
        module.check()


def test_what_is_far_from_the_known_is_said():
    assert unusual_beta(PreferenceLoss("dpo", 0.1)) is None and unusual_beta(PreferenceLoss("simpo")) is None
    assert "beta=8 is far" in unusual_beta(PreferenceLoss("dpo", 8.0))
    assert unusual_rate(PreferenceLoss("dpo"), 5e-7, has_adapter=False) is None
    assert "1e-07 to 5e-06" in unusual_rate(PreferenceLoss("dpo"), 1e-3, has_adapter=False)
    assert unusual_rate(PreferenceLoss("dpo"), 2e-4, has_adapter=True) is None
