import inspect
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback

import callbacks
from llm_lightning import cli
from llm_lightning.commands.given_settings import _SettingsOnly
from llm_lightning.errors import UserError
from llm_lightning.run.resumed_settings import TABLE, On, changes, flat, kind_of, refuse
from llm_lightning.run.trainer import RunTrainer

ROOT = Path(__file__).parents[2]
MODULES = (
    "CausalPretraining", "MaskedPretraining", "SpanPretraining", "SupervisedFinetuning", "Distillation",
    "RewardModeling", "PreferenceOptimization", "PPO",
)  # fmt: skip
DATA = (
    "TextDataModule", "StreamingTextDataModule", "WatchedTextDataModule", "InstructionDataModule",
    "PreferenceDataModule", "PromptDataModule", "SyntheticDataModule",
)  # fmt: skip


def settings_of(kind: type, name: str) -> set[str]:
    parser = ArgumentParser()
    parser.add_class_arguments(kind, name, fail_untyped=False)
    return {action.dest for action in parser._actions if action.dest != "help" and not action.dest.endswith(".help")}


def every_setting() -> set[str]:
    found = settings_of(RunTrainer, "trainer") - {"trainer"}
    for name in MODULES:
        found |= settings_of(getattr(cli, name), "model")
    for name in DATA:
        found |= settings_of(getattr(cli, name), "data")
    for name in callbacks.__all__:
        kind = getattr(callbacks, name)
        if issubclass(kind, Callback) and not inspect.isabstract(kind):
            found |= {f"trainer.callbacks.{name}", *settings_of(kind, f"trainer.callbacks.{name}")}
    parser = _SettingsOnly(["fit", "--model=CausalPretraining", "--data=TextDataModule"])._parser("fit")
    own = {action.dest for action in parser._actions if not action.dest.endswith("help")}
    return found | {name for name in own if "." not in name and name not in ("trainer", "print_config")}


def test_every_setting_has_a_kind_and_only_one():
    names = every_setting()
    assert len(names) > 200 and {"model.schedule.kind", "data.seq_len", "trainer.max_steps", "resume"} <= names
    groups = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    assert not sorted(name for name in names - groups if kind_of(name) is None)
    patterns = [pattern for kind in TABLE.values() for pattern in kind]
    assert len(patterns) == len(set(patterns))
    unused = [p for p in patterns if not p.endswith("*") and p not in names and not p.startswith("model.optimizer.")]
    # What a library's class, a module to come, or a network that may be left out, brings.
    assert set(unused) <= {"model.backbone.new_tokens", "model.teacher.path", "data.column"}, unused


def test_the_table_is_in_the_documentation():
    text = (ROOT / "docs" / "running" / "resuming.md").read_text()
    shown = [pattern for kind in TABLE.values() for pattern in kind if f"`{pattern}`" in text]
    assert sorted(shown) == sorted(pattern for kind in TABLE.values() for pattern in kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.optimizer.lr", On.EFFECT),
        ("model.optimizer.momentum", On.REFUSED),
        ("model.optimizer.fused", On.FREE),
        ("model.backbone.config.hidden_act", On.REFUSED),
        ("model.peft.r", On.REFUSED),
        ("trainer.callbacks.StopWhen.conditions.NoImprovement.patience", On.EFFECT),
        ("trainer.callbacks.Samples.max_new_tokens", On.FREE),
        ("trainer.callbacks.Pruning.structure", On.REFUSED),
        ("trainer.callbacks.somebody.Else", On.EFFECT),
        ("trainer.new_setting", None),
    ],
)
def test_the_most_exact_name_decides(name, kind):
    assert kind_of(name) is kind


def config(**model):
    init_args = {"backbone": {"path": None, "config": {"class_path": "x.Config", "init_args": {"act": "silu"}}}} | model
    return {"model": {"class_path": "a.B", "init_args": init_args}, "trainer": {"max_steps": 3, "callbacks": None}}


def test_changes_are_found_at_any_depth():
    before = config(schedule={"warmup": 1})
    now = config(schedule={"warmup": 2})
    now["model"]["init_args"]["backbone"]["config"]["init_args"]["act"] = "gelu"
    now["trainer"]["callbacks"] = [{"class_path": "callbacks.Samples"}, {"class_path": "my.Own", "init_args": {"a": 1}}]
    assert changes(before, before) == {}
    assert changes(before, now) == {
        "model.schedule.warmup": (1, 2),
        "model.backbone.config.act": ("silu", "gelu"),
        "trainer.callbacks.Own": ("absent", "my.Own"),
        "trainer.callbacks.Own.a": ("absent", 1),
    }
    with pytest.raises(UserError, match=r"model\.backbone\.config\.act: .* with silu, and cannot go on with gelu"):
        refuse(changes(before, now), "runs/x")
    assert changes(before, config(schedule={"warmup": 1}, added_by_a_later_version=3)) == {}


def test_what_is_put_around_the_data_counts_as_the_data():
    inner = {"class_path": "d.InstructionDataModule", "init_args": {"seq_len": 8}}
    outer = {"data": {"class_path": "d.SyntheticDataModule", "init_args": {"data": inner, "share": 0.5}}}
    assert ("data.seq_len", 8) in list(flat(outer)) and ("data.share", 0.5) in list(flat(outer))
