import pytest
import torch
from lightning.pytorch import seed_everything

from callbacks import CallbackError, Samples
from callbacks.monitoring.samples import DEFAULT_GENERATION, generate_texts, is_sharded
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_network, tiny_tokenizer, tiny_trainer
from tests.callbacks.tiny_run import finish, free_port, short_samples

GREEDY = {"do_sample": False}


def fit(root, samples, module=None, **settings):
    trainer = tiny_trainer(root, callbacks=[samples] if samples else [], **settings)
    trainer.fit(module or TinyModule(), TinyData())
    return trainer


def test_texts_are_written_at_each_validation_with_their_prompts(tmp_path):
    fit(tmp_path, Samples(prompts=["", "ab"], max_new_tokens=5), num_sanity_val_steps=2)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-000005.txt", "step-000010.txt"]
    text = (tmp_path / "samples" / "step-000005.txt").read_text()
    assert "--- prompt: ''\n" in text and "--- prompt: 'ab'\nab" in text


def test_a_prompt_continues_as_it_would_alone_and_without_padding():
    network, tokenizer = tiny_network().train(), tiny_tokenizer()
    prompts = ["abcdefgh", "a"]
    together = generate_texts(network, tokenizer, prompts, 8, GREEDY)
    assert network.training
    network.eval()
    for prompt, text in zip(prompts, together, strict=True):
        input_ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        alone = network.generate(input_ids, max_new_tokens=8, do_sample=False, pad_token_id=2)
        assert text == tokenizer.decode(alone[0, input_ids.shape[1] :], skip_special_tokens=True)


def test_the_same_weights_write_the_same_and_settings_reach_generation():
    network, tokenizer = tiny_network(), tiny_tokenizer()
    texts = [generate_texts(network, tokenizer, ["a"], 20, generation) for generation in (DEFAULT_GENERATION,) * 2]
    assert texts[0] == texts[1]
    assert texts[0] != generate_texts(network, tokenizer, ["a"], 20, GREEDY)


def test_training_does_not_notice(tmp_path):
    losses = []
    for samples in (Samples(max_new_tokens=4), None):
        seed_everything(0, verbose=False)
        module = TinyModule()
        fit(tmp_path, samples, module, val_check_interval=2)
        losses.append(module.losses)
    assert losses[0] == losses[1]


def test_a_network_that_diverged_or_a_full_disk_does_not_stop_training(tmp_path):
    class Diverged(TinyModule):
        def validation_step(self, batch, batch_idx):
            for weight in self.model.parameters():
                torch.nn.init.constant_(weight, float("nan"))

    assert fit(tmp_path, Samples(max_new_tokens=4), Diverged()).global_step == 10
    assert (tmp_path / "samples" / "step-000005.txt").exists()

    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "samples").touch()
    with pytest.warns(UserWarning, match="No samples at step 5"):
        trainer = fit(tmp_path / "blocked", Samples(max_new_tokens=4))
    assert trainer.global_step == 10


def test_sharded_ranks_generate_together(processes, tmp_path):
    assert finish(
        processes, tmp_path, world_size=2, port=free_port(), sharded=True, callbacks=short_samples, max_steps=2,
        val_check_interval=2,
    ) == [0, 0], (tmp_path / "output-0.txt").read_text()  # fmt: skip
    assert (tmp_path / "samples" / "step-000002.txt").read_text().count("--- prompt") == 4


def test_a_whole_network_is_not_taken_for_a_sharded_one():
    assert not is_sharded(tiny_network())


def test_mistakes_are_named_before_training(tmp_path):
    with pytest.raises(CallbackError, match="temprature"):
        fit(tmp_path, Samples(generation={"temprature": 1.0}))
    module = TinyModule()
    module.tokenizer = None
    with pytest.raises(CallbackError, match="tokenizer"):
        fit(tmp_path, Samples(), module)
    assert module.losses == []


def test_nothing_is_written_by_a_rehearsal(tmp_path):
    fit(tmp_path, Samples(max_new_tokens=4), fast_dev_run=True)
    assert not (tmp_path / "samples").exists()
