"""Rounds of `fit`: what a model wrote and learned from makes the model that writes the next data.

Each round is a run in a folder of its own and a process of its own: it is stopped, resumed and found to be finished as
any other, and leaves no memory behind for the next one.
"""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import is_adapter, why_unmergeable
from llm_lightning.process.child import run_child
from llm_lightning.process.rank import is_first_rank


@dataclass(frozen=True)
class Rounds:
    """What is done again and again.

    Args:
        count: how many rounds.
        arguments: of `fit`, as they were given.
        root: the run folder, whose `round-1`, `round-2`, ... are those of the rounds.
        config: the settings of `fit`.
        peft: the adapter's config; None for a whole network.
    """

    count: int
    arguments: list[str]
    root: Path
    config: Any
    peft: Any = None

    def check(self) -> None:
        """Raise `UserError` where one round does not lead to the next one."""
        given, model = f"rounds={self.count}", self.config.model.init_args
        if self.count < 1:
            raise UserError(f"{given} must be at least 1.")
        if "generators" not in (self.config.data.get("init_args") or {}):
            raise UserError(
                f"{given}: in each round the model writes its own data, and --data {_name(self.config.data)} has no "
                "generators. Use --data SyntheticDataModule."
            )
        if model.backbone.path is None:
            raise UserError(f"{given}: name the model that writes in the first round, by --model.backbone.path.")
        if self.config.get("ckpt_path"):
            raise UserError(f"{given}: --ckpt_path belongs to a single run; each round goes on by itself.")
        method = str(getattr(kind := getattr(self.peft, "peft_type", ""), "value", kind))
        if words := why_unmergeable(method):
            raise UserError(f"{given}: an adapter of model.peft={method} cannot be merged for the next round: {words}.")

    def run(self) -> int:
        """Run what is missing of each round; returns the exit code of the first one that did not end well, else 0."""
        model = str(self.config.model.init_args.backbone.path)
        for number in range(1, self.count + 1):
            folder = self.folder(number)
            if is_first_rank():
                print(f"Round {number} of {self.count}, in {folder}: {model} writes", flush=True)
            if code := run_child(["fit", *self.arguments, *self.settings(number, model)], self._environment(folder)):
                return code
            model = str(_trained(folder))
            if number < self.count and is_adapter(model):
                model = str(_merged(Path(model), folder / "merged"))
        if is_first_rank():
            rounds = f"{self.root}/round-*"
            print(f"All rounds are done: {model}\nSide by side: llm-lightning report {rounds}", flush=True)
        return 0

    def folder(self, number: int) -> Path:
        """The run folder of a round, the first of which is 1."""
        return self.root / f"round-{number}"

    def settings(self, number: int, model: str) -> list[str]:
        """The settings of a round, over those that were given.

        Args:
            model: that it begins with.
        """
        data = self.config.data.init_args
        own = {
            "rounds": 1,
            "trainer.default_root_dir": self.folder(number),
            "model.backbone.path": model,
            "data.folder": Path(data.folder) / f"round-{number}",
            "data.seed": data.seed + number - 1,
        }
        settings = [f"--{name}={value}" for name, value in own.items()]
        engine = data.engine.as_dict()
        if engine.get("init_args", {}).get("path") == self.config.model.init_args.backbone.path:
            engine["init_args"]["path"] = model
            settings.append(f"--data.engine={json.dumps(engine)}")
        return settings

    def _environment(self, folder: Path) -> dict[str, str]:
        """W&B shows the rounds as one group; ranks meet anew in each."""
        names = {"WANDB_RUN_GROUP": self.root.name, "WANDB_NAME": f"{self.root.name}-{folder.name}"}
        return names | os.environ | _meeting_place(folder.name)


def show_round(config: Any, first: bool) -> None:
    """Let the settings of another command than `fit` mean the run of a round.

    Args:
        config: the settings, which change.
        first: that of the first round; else of the last one that was begun.
    """
    root = Path(config.trainer.default_root_dir)
    begun = [number for number in range(1, config.rounds + 1) if (root / f"round-{number}").exists()]
    name = f"round-{1 if first or not begun else begun[-1]}"
    config.trainer.default_root_dir = str(root / name)
    if "generators" in (config.data.get("init_args") or {}):
        config.data.init_args.folder = str(Path(config.data.init_args.folder) / name)


def _name(part: Any) -> str:
    return str(part.get("class_path")).rsplit(".", 1)[-1]


def _meeting_place(name: str) -> dict[str, str]:
    """Where ranks that torchrun started meet in a round: its own store holds what those of another round wrote."""
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    from torch.distributed import TCPStore

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    key = f"llm_lightning/{name}"
    if is_first_rank():
        with socket.socket() as listener:
            listener.bind(("", 0))
            store.set(key, str(listener.getsockname()[1]))
    return {"MASTER_PORT": store.get(key).decode(), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _trained(folder: Path) -> Path:
    """The best model of a run, which is the last one where nothing validates."""
    best = folder / "model" / "best"
    return best if best.exists() else folder / "model" / "last"


def _merged(adapter: Path, output: Path) -> Path:
    """The network with the adapter in it; one rank writes it."""
    with FileLock(output.with_name(f".{output.name}.lock")):
        if not output.exists() and (code := run_child(["merge", str(adapter), str(output)], dict(os.environ))):
            raise SystemExit(code)
    return output
