"""The LightningCLI: the one file that knows modules, DataModules, callbacks and loggers."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from safetensors import SafetensorError
from torch import distributed as dist

import callbacks
import llm_lightning.strategies  # noqa: F401 (registers their names)
from callbacks.stopping.graceful_stop import received_signal, was_stopped
from datamodules import (
    DataError,
    InstructionDataModule,
    OpenAIEngine,
    PreferenceDataModule,
    PromptDataModule,
    StreamingTextDataModule,
    SyntheticDataModule,
    TextDataModule,
    WatchedTextDataModule,
)
from datamodules.synthetic.engine import Engine, WrittenText
from llm_lightning.checkpoints.checkpoint_io import AtomicCheckpointIO, trained_steps
from llm_lightning.checkpoints.damage import last_good_checkpoint
from llm_lightning.errors import UserError
from llm_lightning.launch.checks import LaunchError, MeetingError, check_launch, end_at_once, explain
from llm_lightning.loggers.metrics_file import MetricsFile
from llm_lightning.loggers.redact import redact_arguments
from llm_lightning.messages import readable
from llm_lightning.modules import (
    PPO,
    CausalPretraining,
    Distillation,
    MaskedPretraining,
    PreferenceOptimization,
    RewardModeling,
    SpanPretraining,
    SupervisedFinetuning,
)
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.checks import check_batches
from llm_lightning.preflight.refusal import refuse_oversized
from llm_lightning.process.rank import is_first_rank
from llm_lightning.process.redacted_output import print_traceback, report
from llm_lightning.rollouts import LocalEngine
from llm_lightning.run.default_callbacks import default_callbacks
from llm_lightning.run.finished import (
    check_finished,
    compare_settings,
    report_unsafe,
    tell,
    trained_weights,
    why_finished,
)
from llm_lightning.run.folder import RunConfig, as_written, move_aside
from llm_lightning.run.left_behind import refuse_links, remove_leftovers, report_unwritten
from llm_lightning.run.lock import RunLock
from llm_lightning.run.precision import choose_precision
from llm_lightning.run.rounds import Rounds, show_round
from llm_lightning.run.trainer import RunTrainer
from llm_lightning.settings.environment import with_environment
from llm_lightning.settings.of_runs import add_run_settings
from llm_lightning.settings.shipped import with_found_configs
from llm_lightning.strategies.trust import check_strategy
from llm_lightning.strategies.waiting import limit_waiting
from llm_lightning_safety.redaction import remember

# jsonargparse finds a class by its short name once it is imported: --model CausalPretraining.
SHORT_NAMES = (
    CausalPretraining, MaskedPretraining, SpanPretraining, SupervisedFinetuning, Distillation, RewardModeling,
    PreferenceOptimization, PPO,
    TextDataModule, StreamingTextDataModule, WatchedTextDataModule, InstructionDataModule, PreferenceDataModule,
    PromptDataModule, SyntheticDataModule, OpenAIEngine,
)  # fmt: skip

# Writes synthetic records where no other engine is named. Neither package knows the other: here mypy compares them.
ENGINE: type[Engine[WrittenText]] = LocalEngine
ENGINE_PATH = f"llm_lightning.rollouts.{ENGINE.__name__}"

USER_ERRORS = (
    UserError, DataError, callbacks.CallbackError, ArgumentError, MisconfigurationException, OSError, SafetensorError,
)  # fmt: skip

TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # our loaders shard themselves; Lightning's sampler would forget their position
}

DESCRIPTIONS = {
    "fit": "Train, or go on with a run that was stopped.",
    "validate": "Loss of a model on the validation documents.",
    "test": "Loss of a model on the test documents.",
    "predict": "Let a model write, or a reward model score.",
    "preview": "Show the training data as the model will see it.",
    "augment": "Let a model write records for the training data, and filter them; nothing is trained.",
}


class TrainingCLI(LightningCLI):
    """Turns YAML files and flags into a trainer, a module and a DataModule, and runs one command with them."""

    def __init__(self, args: list[str]) -> None:
        self.command = args[0]
        words = redact_arguments(args[1:])
        self.given = shlex.join(["llm-lightning", self.command, *words])
        self.next_command = shlex.join(["llm-lightning", "predict", *words])
        self.arguments, self.code_of_rounds = args[1:], 0
        strict = {"exit_on_error": False, "allow_abbrev": False}
        commands = {name: strict | _help(name) for name in self.subcommands()}
        super().__init__(
            LanguageModule,
            LightningDataModule,
            trainer_class=RunTrainer,
            save_config_callback=RunConfig,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=1,
            parser_kwargs=strict | {"prog": "llm-lightning"} | commands,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=with_found_configs(args),
            auto_configure_optimizers=False,
            # It would write class paths into checkpoints that are imported on loading.
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning asks the instance
        """Lightning's, `preview` and `augment`; once one is named it alone, since each has a parser of all settings."""
        ours = {"model", "datamodule"}
        every = {**LightningCLI.subcommands(), "preview": ours, "augment": ours}
        return {self.command: every[self.command]} if self.command in every else every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to no single part."""
        add_run_settings(parser)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters override the command line here."""

    def before_instantiate_classes(self) -> None:
        """Fill in the defaults that depend on other settings."""
        config = self.config[self.subcommand]
        remember(config.as_dict())
        trainer = config.trainer
        if config.get("data") is None:
            raise UserError("There is no data: name a DataModule by --data, for example --data TextDataModule.")
        stage = config.model.class_path.rsplit(".", 1)[1]
        trainer.default_root_dir = trainer.default_root_dir or str(Path("runs") / _snake_case(stage))
        if sweep := os.environ.get("WANDB_SWEEP_ID"):
            # The trials of a sweep are runs of their own; a trial that is started again goes on.
            trainer.default_root_dir = str(Path(trainer.default_root_dir) / sweep / os.environ["WANDB_RUN_ID"])
        if config.rounds > 1 and self.subcommand != "fit":
            show_round(config, first=self.subcommand == "augment")
        if trainer.max_epochs is None:
            endless = trainer.max_steps != -1 or trainer.max_time is not None
            trainer.max_epochs = -1 if endless else 1
        if trainer.min_epochs is None:
            trainer.min_epochs = 0  # with min_steps Lightning asks for a whole epoch too, and a stream may have none
        if isinstance(trainer.val_check_interval, int):
            trainer.check_val_every_n_epoch = None
        self._name_tokenizer_once(config)

    def _name_tokenizer_once(self, config: Any) -> None:
        init_args: Any = config.data.get("init_args") or {}
        if "generators" in init_args:  # a SyntheticDataModule, around the data
            if init_args.engine is None and (path := config.model.init_args.backbone.path):
                init_args.engine = Namespace(class_path=ENGINE_PATH, init_args=Namespace(path=path))
            init_args = init_args.data.init_args
        if "tokenizer" not in init_args:
            return
        in_data, named = init_args.tokenizer, config.tokenizer
        if in_data and named and in_data != named:
            raise UserError(f"--tokenizer={named} and --data.tokenizer={in_data} exclude each other: give one.")
        init_args.tokenizer = named or in_data or config.model.init_args.backbone.path

    def instantiate_classes(self) -> None:
        """Build the parts; a class, ours or a library's, that refuses its settings has found a user's mistake.

        jsonargparse wraps what it raises in a plain ValueError, once for each level of nesting.
        """
        try:
            super().instantiate_classes()
        except USER_ERRORS:
            raise
        except ValueError as error:
            raise UserError(readable(error)) from error
        # What the network gets, its tokenizer needs too, wherever it is read.
        data = getattr(self.datamodule, "data", self.datamodule)
        data.new_tokens = tuple(self.model.backbone.new_tokens)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the callbacks and the metrics file that every run has."""
        config = self._get(self.config_init, "trainer")
        if self.subcommand == "augment":
            # Each process works by itself, however many were started.
            config.devices, config.num_nodes, config.strategy = 1, 1, "auto"
        else:
            check_launch(config.devices, config.num_nodes)
        root = Path(config.default_root_dir)
        refuse_links(root)
        config.logger = [*_as_list(config.logger), MetricsFile(root)]
        config.plugins = [*_as_list(config.plugins), AtomicCheckpointIO()]
        if self.subcommand == "augment":
            config.plugins.append(LightningEnvironment())
        elif SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            # Lightning's own requeue saves inside a signal handler, which deadlocks; GracefulStop and the script do it.
            config.plugins.append(SLURMEnvironment(auto_requeue=False))
        given = _as_list(config.callbacks)
        module: LanguageModule = self._get(self.config_init, "model")
        defaults = [] if config.fast_dev_run else default_callbacks(self.given, self.next_command, module.monitor)
        if config.enable_progress_bar is False:
            defaults = [each for each in defaults if not isinstance(each, callbacks.TrainingProgress)]
        config.callbacks = [*given, *(d for d in defaults if not any(isinstance(g, type(d)) for g in given))]
        # What every fit prints of its network says more than Lightning's table.
        config.enable_model_summary = bool(config.enable_model_summary)
        resume = self._get(self.config, "resume")
        config.precision = choose_precision(config.precision, str(config.accelerator), root if resume else None)
        self.config[self.subcommand].trainer.precision = config.precision
        if not module.automatic_optimization:
            # Lightning clips only where it steps; the setting means the same for a module that steps by itself.
            module.gradient_clip_val, config.gradient_clip_val = config.gradient_clip_val, None
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The trainer cannot be made from these settings: {error}") from error
        check_strategy(trainer.strategy)
        limit_waiting(trainer.strategy)
        trainer.checks_ranks = self._get(self.config_init, "check_ranks")  # type: ignore[attr-defined]
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Check the settings, find where to go on, and train."""
        root, count = Path(self.trainer.default_root_dir), self._get(self.config, "rounds")
        if count != 1 and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rounds = Rounds(count, self.arguments, root, self.config["fit"], self.model.peft)
            rounds.check()
            self._check()
            self.code_of_rounds = rounds.run()
            return
        self._check()
        if kwargs.get("ckpt_path") and not Path(kwargs["ckpt_path"]).exists():
            raise UserError(f"ckpt_path={kwargs['ckpt_path']}: there is no such checkpoint.")
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._go_on(kwargs)
            return
        if self._get(self.config, "check_memory"):
            refuse_oversized(self.model, self.datamodule, self.trainer)
        resume = self._get(self.config, "resume")
        with RunLock(root) as lock:
            remove_leftovers(root)
            if kwargs.get("ckpt_path") is None:
                if not resume:
                    lock.release()
                    move_aside(root)
                    lock.acquire()
                # Another rank may look before the first one has moved the folder.
                folder, strategy = root / "checkpoints", self.trainer.strategy
                kwargs["ckpt_path"] = (
                    last_good_checkpoint(folder, set_aside=True, strategy=strategy) if resume else None
                )
            self._go_on(kwargs)

    def _go_on(self, kwargs: dict[str, Any]) -> None:
        checkpoint = kwargs["ckpt_path"] = Path(kwargs["ckpt_path"]) if kwargs.get("ckpt_path") else None
        config = as_written(self._parser("fit"), self.config["fit"])
        if checkpoint is not None:
            found = compare_settings(checkpoint, config)
            if finished := why_finished(self.trainer, checkpoint):
                check_finished(self.model, self.datamodule, checkpoint, found)
                rank_zero_info(f"This run is finished: {finished}, or start over with --resume false.")
                return
            rank_zero_info(f"Going on from {checkpoint} (--resume false starts over).")
            tell(found)
        for logger in self.trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.go_on_behind(trained_steps(checkpoint))
            logger.log_hyperparams(yaml.safe_load(self._parser("fit").dump(self.config["fit"])))
        self.trainer.fit(**kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Loss on the validation documents."""
        self.trainer.validate(**self._with_weights(kwargs))

    def test(self, **kwargs: Any) -> None:
        """Loss on the test documents."""
        self.trainer.test(**self._with_weights(kwargs))

    def predict(self, **kwargs: Any) -> None:
        """Write what the model makes of each prompt, or the rewards of conversations, to predictions.jsonl."""
        kwargs = self._with_weights(kwargs)
        kwargs["return_predictions"] = False
        with RunLock(Path(self.trainer.default_root_dir), ".predict.lock", "writes predictions"):
            self.trainer.predict(**kwargs)

    def _check(self) -> None:
        check_batches(self.model, self.datamodule, predicts=self.subcommand == "predict")
        self.model.check(self.datamodule)
        if callable(check := getattr(self.datamodule, "check", None)):
            check()
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks if self.subcommand == "fit" else ():
            if callable(check := getattr(callback, "check", None)):
                check(self.datamodule)

    def _with_weights(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The command that trained a network judges what came of it; without a run, what `backbone.path` names."""
        self._check()
        if kwargs.get("ckpt_path") is None:
            root = Path(self.trainer.default_root_dir)
            path = self.model.backbone.path
            kwargs["ckpt_path"] = trained_weights(self.trainer) if self._get(self.config, "resume") else None
            if kwargs["ckpt_path"] is None and (path is None or self.model.peft is not None):
                raise UserError(
                    f"There are no trained weights: {root}/checkpoints is empty, or --resume is false. Name a model "
                    "folder by --model.backbone.path (without model.peft), or a checkpoint by --ckpt_path."
                )
            ours = f" (--resume false takes {path} as it is)" if path and self.model.peft is None else ""
            rank_zero_info(f"Weights: {kwargs['ckpt_path']}{ours}" if kwargs["ckpt_path"] else f"Weights: {path}")
        return kwargs


def _help(command: str) -> dict[str, str]:
    """What stands above a command's settings; argparse's own usage line fills a screen with their names."""
    return {
        "usage": f"llm-lightning {command} [--config FILE ...] [--KEY VALUE ...]",
        "description": f"{DESCRIPTIONS[command]} Settings of a class: --model.help CausalPretraining, --data.help "
        "TextDataModule. The whole configuration as YAML: --print_config.",
    }


def run(args: list[str], *, debug: bool = False, kind: type[TrainingCLI] = TrainingCLI) -> int:
    """Run one command; a user's mistake becomes one message and exit code 2.

    Args:
        args: command and arguments.
        debug: raise instead.
        kind: what runs it.
    """
    try:
        cli = kind(with_environment(args, os.environ))
    except USER_ERRORS as error:
        return _report(error, debug)
    except MeetingError as error:
        end_at_once(error, debug)
    except dist.DistNetworkError as error:
        if (explained := explain(error)) is None:
            raise
        return _report(explained, debug)
    except SystemExit as stop:  # --help and --print_config
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    if was_stopped(cli.trainer) and dist.is_initialized():
        dist.barrier()  # srun ends the step with its first failing rank, and the first rank may still be writing
    # As a shell would report it, so that nothing chained behind a stopped run starts.
    if received := received_signal(cli.trainer):
        return 128 + received
    return (
        cli.code_of_rounds
        or report_unwritten(cli.trainer)
        or (report_unsafe(cli.trainer) if cli.subcommand == "fit" else 0)
    )


def _report(error: BaseException, debug: bool) -> int:
    if isinstance(error, LaunchError) and not is_first_rank():
        if debug:
            print_traceback(error)
        return 2
    field = "data." if isinstance(error, DataError) and re.match(r"[a-z_]+(:| and )", str(error)) else ""
    return report(error, debug, field)


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
