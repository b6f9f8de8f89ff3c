"""Preference optimization by the command line: from pairs to a folder that writes, killed and gone on, and mistakes."""

import csv
import json
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from llm_lightning.__main__ import main
from llm_lightning.modules.preference.reference_cache import ReferenceCache
from tests.config_files import adamw, config_of, part, samples_of, saves_every
from tests.end_to_end.test_reward import LORA, preferences

CONFIG = config_of(
    part("PreferenceOptimization", backbone={"path": "network"}, optimizer=adamw(2e-3)),
    part("PreferenceDataModule", path="pairs.jsonl", seq_len=64, batch_size=2, val_share=0.1),
    max_steps=24, val_check_interval=8, accumulate_grad_batches=2, callbacks=[saves_every(3), samples_of(4)],
)  # fmt: skip


@pytest.fixture
def pairs(folder, network):
    """A folder with a network and pairs to learn from."""
    (folder / "network").symlink_to(network)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences(80)))
    singles = [
        {"prompt": pair["prompt"], "completion": pair[side], "feedback": "good" if side == "chosen" else "bad"}
        for pair in preferences(80)
        for side in ("chosen", "rejected")
    ]
    (folder / "singles.jsonl").write_text("".join(json.dumps(single) + "\n" for single in singles[1:]))
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "peft.yaml").write_text(yaml.dump({"model": {"init_args": {"peft": LORA}}}))
    return folder


@pytest.fixture
def here(pairs, cache, monkeypatch):
    """In the folder, for the command line in this process."""
    monkeypatch.chdir(pairs)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))


def logged(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_policy_comes_out_that_transformers_loads(run, pairs):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, output = run("fit", "--config", "tiny.yaml")
    assert code == 0, output
    assert "pairs.jsonl: prompt-pair" in output and "model.optimizer.lr=0.002 is far from" in output
    folder = pairs / "run"
    assert logged(folder, "val/accuracy")[-1] > 0.9 and logged(folder, "val/accuracy_low")[-1] > 0.5
    assert logged(folder, "train/loss")[0] == pytest.approx(0.6931, abs=1e-3)
    assert {"train/chosen_moved", "train/rejected_logprob", "train/margin", "train/chosen_tokens"} <= set(
        (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    )
    assert (folder / "samples" / "step-000008.txt").read_text().count("--- prompt:") == 4
    model = AutoModelForCausalLM.from_pretrained(folder / "model" / "last")
    assert AutoTokenizer.from_pretrained(folder / "model" / "last").chat_template
    before = load_file(pairs / "network" / "model.safetensors")
    assert not torch.equal(model.state_dict()["model.norm.weight"], before["model.norm.weight"])


def test_single_answers_train_kto_and_the_run_tells_how_many_are_right(here, pairs, capfd, caplog):
    args = ["--model.objective.kind=kto", "--data.path=singles.jsonl", "--model.reference=cached"]
    assert main(["fit", "--config", "tiny.yaml", *args]) == 0
    assert "singles.jsonl: prompt-single (columns prompt, completion, feedback)" in caplog.text
    assert "143 single answers (" in caplog.text and "answers right  " in capfd.readouterr().out
    folder = pairs / "run"
    assert logged(folder, "val/answer_accuracy")[-1] > 0.9 > logged(folder, "val/answer_accuracy_low")[-1]
    assert not logged(folder, "val/accuracy") and (folder / "model" / "last" / "config.json").exists()


@pytest.mark.parametrize("overlay", [pytest.param((), marks=pytest.mark.slow), ("--config", "peft.yaml")])
def test_a_killed_run_goes_on_bit_for_bit(command, run, pairs, overlay):
    from tests.end_to_end.test_resume import kill_after_steps, losses, weights

    args = ("--config", "tiny.yaml", *overlay, "--model.objective.kind=kto")
    code, output = run("fit", *args, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert kill_after_steps(command, pairs, 8, *overlay, "--model.objective.kind=kto")
    code, output = run("fit", *args)
    assert code == 0 and "Going on from" in output, output
    assert losses(pairs / "run") == losses(pairs / "straight")
    ours, theirs = weights(pairs / "run"), weights(pairs / "straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def known(folder):
    """What a cache that is being built knows of the pairs that train, (N, 2)."""
    found = list(folder.glob("cache/reference/*/train"))
    values = np.frombuffer(found[0].read_bytes(), np.float32) if found else np.zeros(0, np.float32)
    return values.reshape(-1, 2)


def test_a_killed_build_of_the_reference_computes_nothing_twice(command, here, pairs, monkeypatch):
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences(1000)))
    args = ("fit", "--config", "tiny.yaml", "--data.cache_dir=cache", "--trainer.max_steps=6", "--trainer.callbacks=[]")
    cached = (*args, "--model.reference=cached")
    process = command(*cached)
    while process.poll() is None and np.isnan(before := known(pairs)).sum() == before.size:
        time.sleep(0.002)
    process.kill()
    process.wait(60)
    before = known(pairs)
    was_there = ~np.isnan(before).any(1)
    assert 0 < was_there.sum() < len(before)

    fill, numbers = ReferenceCache._fill, []

    def noting(self, part, logprobs):
        def noted(batch):
            numbers.extend(batch["numbers"].tolist() if part.name == "train" else [])
            return logprobs(batch)

        fill(self, part, noted)

    monkeypatch.setattr(ReferenceCache, "_fill", noting)
    assert main(list(cached)) == 0
    # A batch is written as a whole, but a kill may leave a part of one.
    assert len(numbers) == len(set(numbers)) and 0 <= len(numbers) - (~was_there).sum() < 16
    after = known(pairs)
    assert np.array_equal(after[was_there], before[was_there]) and not np.isnan(after).any()
    assert main([*args, "--trainer.default_root_dir=live"]) == 0
    ours, theirs = (load_file(pairs / name / "model" / "last" / "model.safetensors") for name in ("run", "live"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and len(numbers) < len(before)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "ia3", "vera", "oft", "bottleneck", "prefix_tuning"])
def test_adapters_begin_at_the_reference_and_train(here, pairs, name):
    """Whatever the adapter, the reference is the network that training began from."""
    args = ["--data.share_prompts=false", "--data.seq_len=100"] if name == "prefix_tuning" else []
    args += [f"--config=configs/peft/{name}.yaml", "--trainer.max_steps=3", "--trainer.val_check_interval=3"]
    assert main(["fit", "--config", "tiny.yaml", *args, "--trainer.callbacks=[]"]) == 0
    moved = logged(pairs / "run", "train/chosen_moved")
    assert abs(moved[0]) < (10 if name == "prefix_tuning" else 1e-3)  # virtual tokens are something from the first step
    assert len(moved) == 3 and moved[-1] != 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.objective.beta=0"], ["model.objective.beta=0"]),
        (["--model.objective.kind=ipo", "--model.objective.label_smoothing=0.1"], ["no effect on kind=ipo"]),
        (["--model.objective.kind=nca"], ["kind", "nca"]),
        (["--model.displacement.window=0"], ["model.displacement.window=0"]),
        (["--model.backbone.attention=sdpa"], ["data.share_prompts", "model.backbone.attention"]),
        (["--data=InstructionDataModule", "--data.path=pairs.jsonl"], ["preference pairs", "PreferenceDataModule"]),
        (["--data.path=texts.jsonl"], ["texts.jsonl", "text", "columns"]),
        (["--data.path=singles.jsonl"], ["data.path", "singles.jsonl", "model.objective.kind=dpo needs pairs", "kto"]),
    ],
)
def test_mistakes(here, capfd, args, words):
    assert main(["fit", "--config", "tiny.yaml", *args]) == 2
    output = capfd.readouterr().err
    assert "Traceback" not in output and all(word in output for word in words), output


def test_a_run_stops_when_chosen_answers_become_unlikely(here, capfd):
    args = ["--model.optimizer.lr=0.05", "--model.displacement.action=stop", "--model.displacement.limit=0.01"]
    main(["fit", "--config", "tiny.yaml", *args, "--model.displacement.window=1", "--model.schedule.warmup=0"])
    assert "Likelihood displacement. Step" in capfd.readouterr().out
