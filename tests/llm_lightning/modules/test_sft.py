"""SupervisedFinetuning: packed conversations against transformers on single ones, and what it leaves behind."""

import copy

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.modules import SupervisedFinetuning
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.modules.test_pretraining import fit, sgd

PAIRS = [
    ("¿Qué es esto?", "Una prueba, nada más. 🙂"),
    ("2+2?", "4"),
    ("Say it at length.", "First this, then that, and at last the end of it all."),
    ("hello", "Hi!"),
    ("why?", "Because."),
]


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer("smollm2")


@pytest.fixture(scope="module")
def network(tokenizer):
    torch.manual_seed(0)
    return Backbone(config=tiny_config(vocab_size=448, max_position_embeddings=512)).build()


def conversation(tokenizer, question, answer):
    """(1, n) ids and labels of one conversation, by the tokenizer's own rendering of prompt and whole."""
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    labels[-1] = -100  # the line break behind the end of the turn
    return torch.tensor([ids]), torch.tensor([labels])


@pytest.fixture(scope="module")
def packed(tokenizer, tmp_path_factory):
    """The conversations as the DataModule serves them."""
    import json

    from datamodules import InstructionDataModule

    folder = tmp_path_factory.mktemp("data")
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in PAIRS))
    tokenizer.save_pretrained(folder / "tokenizer")
    data = InstructionDataModule(
        path=str(folder / "data.jsonl"), tokenizer=str(folder / "tokenizer"), seq_len=256, batch_size=2, val_share=0.0,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    return batch


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def summed(network, batches):
    """The loss over all batches per trained token, with its gradients."""
    network = copy.deepcopy(network)
    total, count = 0.0, 0
    for batch in batches:
        prepared = prepare_batch(batch)
        loss = language_loss(network, prepared).loss
        loss.backward()
        total, count = total + float(loss), count + len(prepared["targets"])
    for parameter in network.parameters():
        parameter.grad /= count
    return total / count, gradients(network)


def reference(network, tokenizer):
    """transformers' own loss on each conversation alone, weighted by its trained tokens."""
    network = copy.deepcopy(network)
    network.set_attn_implementation("eager")
    singles = [conversation(tokenizer, *pair) for pair in PAIRS]
    count = sum(int((labels[:, 1:] != -100).sum()) for _, labels in singles)
    total = 0.0
    for ids, labels in singles:
        loss = network(input_ids=ids, labels=labels).loss * int((labels[:, 1:] != -100).sum()) / count
        loss.backward()
        total += float(loss)
    return total, gradients(network)


def padded_batch(tokenizer):
    singles = [conversation(tokenizer, *pair) for pair in PAIRS]
    width = max(ids.shape[1] for ids, _ in singles)
    batch = {"input_ids": torch.zeros(5, width, dtype=torch.long), "labels": torch.full((5, width), -100)}
    batch["attention_mask"] = torch.zeros(5, width, dtype=torch.long)
    for row, (ids, labels) in enumerate(singles):
        n = ids.shape[1]
        batch["input_ids"][row, :n], batch["labels"][row, :n], batch["attention_mask"][row, :n] = ids[0], labels[0], 1
    return batch


@pytest.mark.parametrize("form", ["packed", "padded", "one by one"])
def test_loss_and_gradients_equal_transformers_on_single_conversations(network, tokenizer, packed, form):
    expected, expected_gradients = reference(network, tokenizer)
    singles = [conversation(tokenizer, *pair) for pair in PAIRS]
    batches = {
        "packed": [packed],
        "padded": [padded_batch(tokenizer)],
        "one by one": [{"input_ids": ids, "labels": labels} for ids, labels in singles],
    }
    loss, ours = summed(network, batches[form])
    assert loss == pytest.approx(expected, abs=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_token_accuracy_is_the_share_of_right_guesses(network, packed):
    batch = prepare_batch(packed)
    with torch.no_grad():
        correct = language_loss(network, batch).correct
        guesses = network(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], documents=batch["documents"]
        ).logits.flatten(0, 1)[batch["target_positions"]]
    assert correct == (guesses.argmax(-1) == batch["targets"]).sum()


def test_it_learns_the_replies_and_stops_where_they_end(tokenizer, packed):
    module = SupervisedFinetuning(
        Backbone(config=tiny_config(vocab_size=448, max_position_embeddings=512, hidden_size=64)),
        lambda params: torch.optim.AdamW(params, lr=5e-3),
    )
    module.tokenizer = tokenizer
    module.setup = lambda stage: None
    fit(module, [packed] * 120)
    module.model.eval()
    for question, answer in PAIRS:
        talk = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = module.model.generate(**prompt, max_new_tokens=60, do_sample=False)
        reply = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
        assert reply == answer + "<|im_end|>"


def test_generation_stops_at_the_end_of_a_turn(tokenizer):
    module = SupervisedFinetuning(Backbone(config=tiny_config(vocab_size=448)), sgd)
    module.tokenizer = tokenizer
    module.configure_model()
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in module.model.generation_config.eos_token_id


def test_options_of_generate_reach_predict(tokenizer):
    torch.manual_seed(0)
    module = SupervisedFinetuning(
        Backbone(config=tiny_config(vocab_size=448)),
        generation={"max_new_tokens": 70, "min_new_tokens": 70, "stop_strings": ["never"], "use_cache": False},
    )
    module.tokenizer = tokenizer
    module.configure_model()
    module.model.eval()
    prompts = torch.tensor([tokenizer("hello there").input_ids])
    (row,) = module.predict_step({"prompt_ids": prompts, "attention_mask": torch.ones_like(prompts)}, 0)
    assert len(tokenizer(row["continuation"]).input_ids) > 64
