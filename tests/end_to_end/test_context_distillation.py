"""A student that learns what it would say behind a context: by the command line, killed and gone on, and mistakes."""

import json

import pytest
import torch
import yaml

from llm_lightning.__main__ import main
from tests.end_to_end.test_distillation import logged, taught  # noqa: F401 (a fixture)
from tests.end_to_end.test_resume import kill_after_steps, losses, weights

ITSELF = ("--model.teacher=null", "--model.backbone.path=taught/model/last", "--model.backbone.dropout=0")
EXAMPLES = [
    {"role": "system", "content": "You count."},
    {"role": "user", "content": "What is 3 plus 3?"},
    {"role": "assistant", "content": "It is 6."},
]
LORA = ("--config=peft/lora",)


@pytest.fixture
def here(taught, tmp_path, monkeypatch):  # noqa: F811
    """In the folder, with a cache of its own, and a context in a file."""
    monkeypatch.chdir(taught)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "own-cache"))
    (taught / "context.yaml").write_text(yaml.dump({"model": {"init_args": {"context": EXAMPLES}}}))
    return taught


def fit(root, *args):
    return main(["fit", "--config", "tiny.yaml", *args, f"--trainer.default_root_dir={root}"])


@pytest.mark.parametrize("more", [(), LORA, ("--model.teacher_logprobs=cached", "--model.top_k=320")])
def test_behind_nothing_a_student_has_nothing_to_learn_from_itself(here, more):
    assert (
        fit("run", *more, *ITSELF, "--model.context=", "--trainer.max_steps=1", "--trainer.val_check_interval=1") == 0
    )
    assert logged(here / "run", "train/divergence") == pytest.approx([0.0], abs=1e-6)
    assert logged(here / "run", "train/grad_norm") == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("adapter", [pytest.param((), marks=pytest.mark.slow), LORA])
def test_a_student_comes_near_itself_behind_a_context_live_and_from_a_cache(here, adapter):
    args = (*adapter, "--config=context.yaml", *ITSELF, "--model.optimizer.lr=1e-3")
    assert fit("live", *args) == 0
    divergences = logged(here / "live", "val/divergence")
    assert 0 < divergences[-1] < divergences[0]
    assert logged(here / "live", "train/divergence")[0] > 2 * divergences[-1]
    assert fit("cached", *args, "--model.teacher_logprobs=cached", "--model.top_k=320") == 0
    for name in ("train/divergence", "val/divergence", "train/loss"):
        assert logged(here / "cached", name) == pytest.approx(logged(here / "live", name), rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(command, run, here):
    args = (*LORA, "--config", "context.yaml", *ITSELF)
    code, output = run("fit", "--config", "tiny.yaml", *args, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert kill_after_steps(command, here, 8, *args)
    code, output = run("fit", "--config", "tiny.yaml", *args)
    assert code == 0 and "Going on from" in output, output
    assert losses(here / "run") == losses(here / "straight")
    ours, theirs = weights(here / "run"), weights(here / "straight")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_prompted_teacher_of_texts(here):
    (here / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} and {i} make {2 * i}."}) + "\n" for i in range(60))
    )
    texts = ("--data=TextDataModule", "--data.path=texts.jsonl", "--data.seq_len=64", "--data.batch_size=2")
    assert fit("run", *texts, "--model.context=Sums of numbers.", "--trainer.max_steps=8") == 0
    assert all(value > 0 for value in logged(here / "run", "train/divergence"))


MISTAKES = [
    (["--model.teacher=null"], "model.teacher.path: name the network to learn from"),
    (["--model.context=" + 300 * "word "], "longer than the 128 positions of taught/model/last: shorten it"),
    (
        ["--data=TextDataModule", "--data.text_column=answer", "--config=context.yaml"],
        "model.context: before texts stands a text; turns are for --data InstructionDataModule",
    ),
    (["--model.context=[{role: user}]"], "a turn has a role and a content, and {'role': 'user'} has not"),
]


def test_mistakes(here, capfd):
    for settings, words in MISTAKES:
        assert fit("run", *settings) == 2, settings
        error = capfd.readouterr().err
        assert words in error and "Traceback" not in error, error
    assert not (here / "run" / "checkpoints").exists()
