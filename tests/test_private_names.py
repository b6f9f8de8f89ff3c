"""What we use of libraries' private names: it is in one table, in one place a package, and in the installed versions.

A release of a library may take such a name away without a word; the upper bounds in pyproject.toml end with the last
versions that this table was held against.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.utilities import load
from lightning.pytorch import LightningModule, Trainer, loops
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.trainer import call
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed._tools import mem_tracker
from wandb.sdk import wandb_run

import callbacks
import datamodules
import llm_lightning
import llm_lightning_safety

PACKAGES = (callbacks, datamodules, llm_lightning, llm_lightning_safety)
NO_PRIVATE = {"_asdict", "_exit", "_replace"}  # documented, in spite of their names
OPTIONAL = {"lm_eval", "ray"}  # what only an extra brings, and is imported at a module's beginning all the same
COUNTERS = {"batch_progress", "epoch_progress"}  # of Lightning's loops


@functools.cache
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)


def epoch_loop() -> Any:
    return trainer().fit_loop.epoch_loop


def wandb_logger() -> WandbLogger:
    return WandbLogger(save_dir="nowhere", offline=True)


def lr_scheduler() -> Any:
    return torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), lambda step: 1.0)


def layerwise_config() -> Any:
    return transformers.LlamaConfig(num_hidden_layers=2, per_layer_config={0: {"intermediate_size": 8}})


# Name -> who has it.
PRIVATE: dict[str, Callable[[], Any]] = {
    # Lightning's loops: callbacks/training_loop.py, llm_lightning/run/ and modules/base.py
    "_TrainingEpochLoop": lambda: loops,
    "_can_stop_early": lambda: trainer().fit_loop,
    "_data_fetcher": lambda: trainer().fit_loop,
    "_is_training_done": epoch_loop,
    "_logger_connector": trainer,
    "_max_batches": lambda: epoch_loop().val_loop,
    "_run_stage": trainer,
    "_should_accumulate": epoch_loop,
    "_should_check_val_epoch": epoch_loop,
    "_should_check_val_fx": epoch_loop,
    "_val_check_time_interval": trainer,
    "_call_callback_hooks": lambda: call,
    "_call_lightning_module_hook": lambda: call,
    "_call_strategy_hook": lambda: call,
    # The rest of Lightning: llm_lightning/cli.py, commands/, run/, strategies/, checkpoints/, loggers/, modules/base.py
    "_METADATA_FILENAME": lambda: load,
    "_data_parallel_size": ModelParallelStrategy,
    "_ddp_kwargs": DDPStrategy,
    "_device_mesh": ModelParallelStrategy,
    "_experiment": wandb_logger,
    "_get": lambda: LightningCLI,
    "_id": wandb_logger,
    "_init_config_if_needed": lambda: DeepSpeedStrategy,
    "_parse_ckpt_path": lambda: LightningCLI,
    "_parser": lambda: LightningCLI,
    "_run": trainer,
    "_run_subcommand": lambda: LightningCLI,
    "_save_dir": wandb_logger,
    "_setup_distributed": lambda: ModelParallelStrategy,
    "_tensor_parallel_size": ModelParallelStrategy,
    "_timeout": DDPStrategy,
    "_trainer": LightningModule,
    "_wandb_init": wandb_logger,
    # torch: networks and optimizers
    "_apply": nn.Module,
    "_compiled_call_impl": nn.Module,
    "_dynamo": lambda: torch,
    "_foreach_mul_": lambda: torch,
    "_last_lr": lr_scheduler,
    "_parameters": nn.Module,
    "_scaled_dot_product_flash_attention_for_cpu": lambda: torch.ops.aten,
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda: torch.ops.aten,
    # torch's tracker of memory and its tensors without numbers: llm_lightning/preflight/
    "_MemRefType": lambda: mem_tracker,
    "_internal": lambda: torch.testing,
    "_post_bw_hook": lambda: mem_tracker.MemTracker,
    "_post_fw_hook": lambda: mem_tracker.MemTracker,
    "_pre_bw_hook": lambda: mem_tracker.MemTracker,
    "_pre_fw_hook": lambda: mem_tracker.MemTracker,
    "_subclasses": lambda: torch,
    "_tools": lambda: torch.distributed,
    "_track": lambda: mem_tracker.MemTracker,
    "_update_and_maybe_create_winfos": lambda: mem_tracker.MemTracker,
    # torch's checkpoints: llm_lightning/checkpoints/sharded_reader.py
    "_MEM_FORMAT_ENCODING": lambda: dcp.metadata,
    "_StorageInfo": lambda: dcp.filesystem,
    "_nested_dict": lambda: dcp,
    "_slice_file": lambda: dcp.FileSystemReader,
    # transformers: llm_lightning/models/ and callbacks/monitoring/measurement.py
    "_attn_implementation": transformers.LlamaConfig,
    "_attn_implementation_internal": transformers.LlamaConfig,
    "_heterogeneity_spec": layerwise_config,
    "_init_weights": lambda: transformers.PreTrainedModel,
    "_initialize_weights": lambda: transformers.PreTrainedModel,
    "_supports_sdpa": lambda: transformers.LlamaForCausalLM,
    # lm-evaluation-harness, an abstract method of its: llm_lightning/evaluation/harness.py
    "_loglikelihood_tokens": lambda: pytest.importorskip("lm_eval.api.model").TemplateLM,
    # wandb: llm_lightning/loggers/wandb.py
    "_log_artifact": lambda: wandb_run.Run,
}


@pytest.mark.parametrize("name", PRIVATE)
def test_the_installed_version_has_it(name):
    assert hasattr(PRIVATE[name](), name)


def test_the_table_is_whole():
    found = {name for tree in sources().values() for name in private(foreign_names(tree) - defined_by_us())}
    found |= {name for each in our_classes() for name in private(shared_with_library(each))}
    assert sorted(found - PRIVATE.keys()) == []
    text = "".join(path.read_text() for path in sources())
    assert [name for name in PRIVATE if name not in text] == [], "not used any more"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_is_asked_of_others_in_one_place(package):
    inside = Path(package.__file__).parent
    users: dict[str, list[str]] = {name: [] for name in PRIVATE}
    for path, tree in sources().items():
        if path.is_relative_to(inside):
            for name in PRIVATE.keys() & names_of_others(tree):
                users[name].append(str(path.relative_to(inside)))
    assert {name: paths for name, paths in users.items() if len(paths) > 1} == {}


def test_callbacks_know_lightnings_loop_in_one_place_alone():
    every = list(PRIVATE)
    of_loops = COUNTERS | set(every[: every.index("_METADATA_FILENAME")])
    inside = Path(callbacks.__file__).parent
    users = {path for path, tree in sources().items() if path.is_relative_to(inside) and of_loops & names(tree)}
    assert users == {inside / "training_loop.py"}


@functools.cache
def sources() -> dict[Path, ast.Module]:
    roots = [Path(package.__file__).parent for package in PACKAGES]
    return {path: ast.parse(path.read_text()) for root in roots for path in sorted(root.rglob("*.py"))}


def private(found: Iterable[str]) -> set[str]:
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - NO_PRIVATE


def names(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def names_of_others(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not of_self(node)}


def foreign_names(tree: ast.AST) -> set[str]:
    """Attributes, what is imported, and what `getattr` and its like are asked for."""
    found = names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            paths = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {part for path in paths for part in path.split(".")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("attr", ".get")):
            found |= {
                each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return found


@functools.cache
def defined_by_us() -> set[str]:
    return {name for tree in sources().values() for name in defined(tree)}


def defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def of_self(node: ast.Attribute) -> bool:
    return ast.unparse(node.value) in ("self", "cls", "super()")


@functools.cache
def our_classes() -> set[type]:
    found = set()
    for package in PACKAGES:
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                module = importlib.import_module(info.name)
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] not in OPTIONAL:
                    raise
                continue
            found |= {each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == info.name}
    return found


def is_ours(each: type) -> bool:
    return each.__module__.split(".")[0] in {package.__name__ for package in PACKAGES}


def shared_with_library(each: type) -> set[str]:
    """Names that a class of ours has or reads of itself, and that a library's class which it is made from has too."""
    bases = [
        base for base in each.__mro__ if not is_ours(base) and base.__module__ not in ("builtins", "abc", "typing")
    ]
    return own_names(each) & {name for base in bases for name in own_names(base) | set(vars(base))}


def own_names(each: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
    except (OSError, TypeError, SyntaxError):  # made by the interpreter, or in C
        return set()
    reads = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and of_self(node)}
    return reads | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
