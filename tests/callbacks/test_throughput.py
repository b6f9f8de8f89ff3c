import os
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from callbacks import Asked, CallbackError, Evaluation, Throughput
from callbacks.monitoring.flops import TokenFlops, measured_flops, peak_flops
from tests.callbacks.tiny_llama import BATCH_SIZE, SEQ_LEN, TinyData, TinyModule, tiny_trainer

CPU = torch.device("cpu")


def counted(network: torch.nn.Module, num_tokens: int) -> int:
    """FLOPs of forward and backward, counted operation by operation by torch."""
    input_ids = torch.randint(3, 100, (1, num_tokens))
    with FlopCounterMode(display=False) as counter:
        network(input_ids=input_ids, labels=input_ids).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_torch_counts(tied):
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    flops, num_tokens = TokenFlops.of(LlamaForCausalLM(config)), 64
    # torch counts eager attention over all pairs, masked or not.
    expected = num_tokens * flops.per_token + num_tokens**2 * flops.per_pair
    assert counted(LlamaForCausalLM(config), num_tokens) == pytest.approx(expected, rel=0.01)


def test_frozen_weights_cost_no_weight_gradients():
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    network = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules="all-linear"))
    flops, num_tokens = TokenFlops.of(network), 64
    expected = num_tokens * flops.per_token + num_tokens**2 * flops.per_pair
    # The first layer's frozen inputs need no gradient, which the formula does not know.
    assert counted(network, num_tokens) == pytest.approx(expected, rel=0.03)


def test_the_shape_of_the_benchmarks_needs_what_was_published_for_it():
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        flops = TokenFlops.of(LlamaForCausalLM(config))
    assert flops.per_token + 256 / 2 * flops.per_pair == pytest.approx(41.5e6, rel=0.01)


def test_a_measured_peak_is_not_beaten_by_a_matrix_product():
    peak = measured_flops(CPU, torch.float32, seconds=0.2)
    a = torch.rand(512, 512)
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    assert 1e9 < 20 * 2 * 512**3 / (time.perf_counter() - start) < 1.5 * peak


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone ties processes to a processor")
def test_other_work_on_the_same_processor_does_not_lower_the_measured_peak():
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        time.sleep(0.5)
        busy = measured_flops(CPU, torch.float32, seconds=1)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
        os.sched_setaffinity(0, every)
    assert busy > measured_flops(CPU, torch.float32, seconds=1) / 2


def test_data_sheets_are_read_by_the_devices_name(monkeypatch):
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12}
    for name, flops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == flops


class Sleep(Callback):
    """Spends time where training does (each step), or where it does not (validation)."""

    def __init__(self, step: float = 0.0, validation: float = 0.0) -> None:
        self.step, self.validation = step, validation
        self.slept_in_validation = 0.0
        self.logged = []

    def on_train_start(self, *_):
        self.started = time.perf_counter()

    def on_train_end(self, *_):
        self.seconds = time.perf_counter() - self.started

    def on_before_optimizer_step(self, *_):
        time.sleep(self.step)

    def on_validation_batch_start(self, *_):
        time.sleep(self.validation)
        self.slept_in_validation += self.validation

    def on_train_batch_end(self, trainer, *_):
        self.logged.append(trainer.callback_metrics.get("throughput/tokens_per_s"))


def tokens_per_s(tmp_path, sleep, **settings):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="{step}")
    callbacks = [sleep, Throughput(), saving]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, **settings)
    trainer.fit(TinyModule(), TinyData())
    return trainer, float(trainer.callback_metrics["throughput/tokens_per_s"])


def test_tokens_per_second_is_tokens_over_the_time_of_training(tmp_path):
    sleep = Sleep(step=0.02, validation=0.2)
    _, speed = tokens_per_s(tmp_path, sleep, max_steps=8, accumulate_grad_batches=2, val_check_interval=4)
    per_step = 2 * BATCH_SIZE * SEQ_LEN
    assert sleep.slept_in_validation == pytest.approx(4 * 2 * 0.2)
    assert 7 * per_step / (sleep.seconds - sleep.slept_in_validation) < speed < per_step / sleep.step


class Asking(TinyModule):
    """Takes its time to evaluate."""

    tokens_seen, slept = 0, 0.0

    def load_tasks(self, asked):
        return None

    def evaluate_tasks(self, tasks, asked, folder):
        time.sleep(0.2)
        self.slept += 0.2
        return {}


@pytest.mark.parametrize("is_first", [True, False])
def test_evaluations_are_no_time_of_training(tmp_path, is_first):
    sleep, module = Sleep(step=0.02), Asking()
    callbacks = [Throughput(), Evaluation(Asked(["a task"]), every_n_steps=2), sleep]
    if is_first:  # as where a user's callbacks stand before those that every run has
        callbacks = callbacks[1:] + callbacks[:1]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, max_steps=8, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(module, TinyData())
    assert module.slept == pytest.approx(4 * 0.2)
    per_step = BATCH_SIZE * SEQ_LEN
    speed = float(trainer.callback_metrics["throughput/tokens_per_s"])
    assert 7 * per_step / (sleep.seconds - module.slept) < speed < per_step / sleep.step


def test_it_logs_where_the_trainer_logs_and_looks_back_over_its_window(tmp_path):
    sleep = Sleep()
    trainer, last = tokens_per_s(tmp_path, sleep, max_steps=9, log_every_n_steps=4, limit_val_batches=0)
    # This callback looks before the step's own value is there.
    assert [value is not None for value in sleep.logged] == [False] * 4 + [True] * 5
    assert len({float(value) for value in sleep.logged[4:]} | {last}) == 2
    metrics = trainer.callback_metrics
    assert 0 < float(metrics["throughput/mfu"]) < 1
    assert 100 < float(metrics["throughput/memory_mb"]) < 20_000


def test_a_peak_that_was_measured_too_low_is_not_exceeded(tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.monitoring.throughput.peak_flops", lambda device, dtype: 1e3)
    trainer, _ = tokens_per_s(tmp_path, Sleep(), max_steps=4, log_every_n_steps=1, limit_val_batches=0)
    assert 0 < float(trainer.callback_metrics["throughput/mfu"]) <= 1


@pytest.mark.parametrize(
    ("batch", "tokens", "pairs"),
    [
        ({"input_ids": torch.zeros(2, 4)}, 8, 20),
        ({"input_ids": torch.zeros(1, 5), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}, 5, 9),
        ({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}, 4, 7),
        ({"chosen_input_ids": torch.zeros(1, 2), "rejected_input_ids": torch.zeros(1, 3), "labels": None}, 5, 9),
    ],
)
def test_tokens_and_attending_pairs_of_a_batch(batch, tokens, pairs):
    throughput = Throughput()
    throughput._tokens, throughput._pairs = torch.zeros(2, dtype=torch.int64)
    throughput._count({name: value.long() if value is not None else None for name, value in batch.items()})
    assert (throughput._tokens, throughput._pairs) == (tokens, pairs)


def test_a_window_of_no_steps_is_refused():
    with pytest.raises(CallbackError, match="window_size"):
        Throughput(window_size=0)
