"""Post-training quantization at the end of fit."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.model_folder import swap_in
from callbacks.artifacts.random_state import generators_kept
from callbacks.contract import HoldsNetwork, MergesAdapter, SavesModel, required
from callbacks.errors import CallbackError
from callbacks.monitoring.measurement import validation_batches
from callbacks.network import dtype_of, has_adapter, is_sharded
from callbacks.phase import is_rehearsal
from callbacks.quantization import layers, report, schemes
from callbacks.quantization.calibration import Calibration
from callbacks.quantization.choice import CompressionBudget, Measured
from callbacks.quantization.request import Request
from callbacks.quantization.trial import Trial
from callbacks.stopping.graceful_stop import was_stopped


class Quantization(Callback):
    """Quantizes the network that fit ends with, measures what that costs, and keeps what holds the budget.

    The network is saved (with an adapter merged into it), each scheme quantizes that folder, and what it wrote is
    loaded again and measured beside the original, on the validation data. The smallest one within the budget becomes
    `model/quantized`, a folder that `AutoModelForCausalLM.from_pretrained` loads; the others are removed. Where none
    holds, there is no such folder, and the unquantized network is the run's result. The original weights stay as they
    are. Table and figures: `quantization.json` and `quantization.png` in the run folder, and W&B.

    The first rank works alone. A run that a signal stopped is not quantized; nor is one whose weights are sharded.

    Args:
        schemes: Names from `SCHEMES`.
        max_perplexity_increase: Over the original's, as a share (0.02) or in percent (`2%`).
        max_perplexity: Whatever the original's is.
        max_megabytes: Of the folder, in 10^6 bytes.
        min_tokens_per_s: That it writes, one text by itself, on the device of the run.
        group_size: Consecutive inputs of a layer that share a scale, for the schemes that have groups; 64 if not given.
        symmetric: Whether levels lie around zero, for the schemes that have both. If not given they do not: that is
            nearer to the weights.
        high_precision: Patterns of the names of linear layers that stay as they are (`*.layers.0.*`); only the head if
            not given. Embeddings and norms always stay.
        dtype: Of what stays, and of the arithmetic; as in the original if not given.
        calibration: Which training rows calibrated schemes learn from.
        num_batches: Validation batches to measure on.
        options: For a scheme's library, by the scheme's name: `{int4: {iters: 50}}`.
        dirpath: Where the folder goes; `model/` in the run folder if not given.

    Attributes:
        kept: What was kept of the last fit; None before, and where nothing held the budget.

    Raises:
        CallbackError: A setting is wrong or has no effect, a library is missing, or the device cannot run a scheme
            (all before training); there is no validation data, or no data to calibrate on.
    """

    def __init__(
        self,
        schemes: Sequence[str] = ("int8",),
        max_perplexity_increase: float | str | None = None,
        max_megabytes: float | None = None,
        max_perplexity: float | None = None,
        min_tokens_per_s: float | None = None,
        group_size: int | None = None,
        symmetric: bool | None = None,
        high_precision: Sequence[str] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        calibration: Calibration = Calibration(),  # noqa: B008 (read only)
        num_batches: int = 16,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        self.schemes = list(schemes)
        self.budget = CompressionBudget.of(max_perplexity_increase, max_megabytes, max_perplexity, min_tokens_per_s)
        self.group_size = group_size
        self.symmetric = symmetric
        self.high_precision = high_precision
        self.dtype = dtype
        self.calibration = calibration
        self.num_batches = num_batches
        self.options = options or {}
        self.dirpath = dirpath
        self.kept: Measured | None = None
        self._check_settings()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        required(pl_module, SavesModel, self)
        schemes.check_installed(self.schemes)
        schemes.check_device(self.schemes, trainer.strategy.root_device)
        if not trainer.enable_validation:
            raise CallbackError(
                "Quantization measures on the validation data, and the run has none: give some, for example by "
                "data.val_share=0.05, and leave trainer.limit_val_batches alone."
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = required(pl_module, HoldsNetwork, self).model
        if is_sharded(network):
            raise CallbackError(
                "Quantization: the weights are sharded over ranks, and no rank holds the whole network. Quantize the "
                "model folder afterwards, on one device: llm-lightning fit --config configs/quantize.yaml "
                "--model.backbone.path MODEL."
            )
        adapters = network.peft_config.values() if has_adapter(network) else ()
        # An adapter on a quantized network is merged into the unquantized one.
        if getattr(network, "is_quantized", False) and not adapters:
            raise CallbackError("Quantization: the network is quantized already; give the one it was made from.")
        if any(each.is_prompt_learning or each.is_adaption_prompt for each in adapters):
            raise CallbackError("Quantization: the adapter is no change of weights and cannot be merged; LoRA can.")
        if adapters:
            required(pl_module, MergesAdapter, self)
        if network.get_output_embeddings() is None:
            raise CallbackError(f"Quantization measures language models; {type(network).__name__} has no such head.")
        self._check_layers(network)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if "input_ids" not in batch:
            raise CallbackError(
                f"Quantization needs data of texts (`input_ids`) to calibrate and measure on; here are {[*batch]}. "
                "Quantize the model folder afterwards, with other data, by configs/quantize.yaml."
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept = None
        if is_rehearsal(trainer):
            return
        if was_stopped(trainer):
            pl_module.print("The run was stopped; its network is quantized when it has gone on to its end.")
            return
        folder = self.folder(trainer)
        work, device = folder / ".quantizing", trainer.strategy.root_device
        try:
            self._save(trainer, pl_module, work)
            if trainer.is_global_zero:
                with generators_kept(device):
                    self._run(trainer, pl_module, work, folder / "quantized")
        finally:
            if trainer.is_global_zero:
                shutil.rmtree(work, ignore_errors=True)

    def folder(self, trainer: Trainer) -> Path:
        """Where `quantized` is put."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "model")

    def _check_settings(self) -> None:
        schemes.check_names(self.schemes)
        named = [schemes.SCHEMES[name] for name in self.schemes]
        if len(named) > 1 and self.budget == CompressionBudget():
            raise CallbackError(
                "Quantization: several schemes need a limit to choose by: max_perplexity_increase, max_perplexity, "
                "max_megabytes or min_tokens_per_s."
            )
        if self.group_size is not None and self.group_size < 1:
            raise CallbackError(f"Quantization.group_size={self.group_size} is below 1.")
        for setting, has_effect in (
            ("group_size", any(scheme.grouped for scheme in named)),
            ("symmetric", any(scheme.symmetric is not None for scheme in named)),
        ):
            if getattr(self, setting) is not None and not has_effect:
                raise CallbackError(f"Quantization.{setting} has no effect on {', '.join(self.schemes)}: leave it out.")
        for name in self.options:
            if name not in self.schemes:
                raise CallbackError(f"Quantization.options: {name!r} is not among the schemes, {self.schemes}.")
        if self.num_batches < 1:
            raise CallbackError(f"Quantization.num_batches={self.num_batches} is below 1.")
        self.calibration.check()

    def _check_layers(self, network: Any) -> None:
        kept = layers.kept_layers(network, self.high_precision)
        for name in self.schemes:
            layers.check_widths(network, kept, name, self._group_size(name), schemes.SCHEMES[name].multiple)

    def _group_size(self, name: str) -> int | None:
        return (self.group_size or schemes.DEFAULT_GROUP_SIZE) if schemes.SCHEMES[name].grouped else None

    def _save(self, trainer: Trainer, pl_module: LightningModule, work: Path) -> None:
        """Write the network as fit left it, whole, to `original`; all ranks take part."""
        if trainer.is_global_zero:
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed here
            work.mkdir(parents=True)
        folder = work / "original"
        required(pl_module, SavesModel, self).save_model(folder)
        if not trainer.is_global_zero or (folder / "config.json").exists():
            return
        required(pl_module, MergesAdapter, self).merge_adapter(folder.rename(work / "adapter"), folder)

    def _run(self, trainer: Trainer, pl_module: LightningModule, work: Path, place: Path) -> None:
        root, device = Path(trainer.default_root_dir), trainer.strategy.root_device
        calibrated = any(schemes.SCHEMES[name].calibrated for name in self.schemes)
        rows = self.calibration.rows(trainer) if calibrated else []
        record = self.calibration.record(trainer, rows) if calibrated else None
        trial = Trial(work / "original", device, validation_batches(trainer, self.num_batches))
        self._check_layers(trial.network)  # once more: pruning may have made it narrower
        kept, candidates = layers.kept_layers(trial.network, self.high_precision), []
        for name in self.schemes:
            pl_module.print(f"Quantizing: {name} ...")
            request = self._request(name, trial, kept, rows)
            candidates.append(trial.run(name, request, record))
            self.kept = self.budget.choose(candidates, trial.original)
            for each in candidates:
                if each is not self.kept:  # a later one can only take the place of the one that is kept
                    shutil.rmtree(work / each.name, ignore_errors=True)
            report.write_json(root / "quantization.json", trial.as_dict(candidates, self.kept, record))
        self._keep(work, place)
        self._tell(trainer, pl_module, trial.original, candidates, place)

    def _request(self, name: str, trial: Trial, kept: list[str], rows: list[torch.Tensor]) -> Request:
        scheme = schemes.SCHEMES[name]
        dtype = getattr(torch, self.dtype) if self.dtype else dtype_of(trial.network)
        return Request(
            source=trial.folder,
            output=trial.folder.with_name(name),
            bits=scheme.bits,
            group_size=self._group_size(name),
            symmetric=bool(scheme.symmetric if self.symmetric is None else self.symmetric),
            kept=kept,
            device=trial.device,
            dtype=scheme.dtype or dtype,
            rows=rows if scheme.calibrated else (),
            seed=self.calibration.seed,
            options=self.options.get(name, {}),
        )

    def _keep(self, work: Path, place: Path) -> None:
        """Put what is kept in its place; an earlier run's must not be taken for this one's."""
        if self.kept is None:
            shutil.rmtree(place, ignore_errors=True)
        else:
            swap_in(work / self.kept.name, place)

    def _tell(
        self, trainer: Trainer, pl_module: LightningModule, original: Measured, candidates: list[Measured], place: Path
    ) -> None:
        refusals = {each.name: self.budget.refusal(each, original) for each in candidates}
        notes = {name: f"refused, {why}" if why else schemes.SCHEMES[name].cost for name, why in refusals.items()}
        lines = [report.as_text(original, candidates, notes)]
        if self.kept is None:
            lines.append("No scheme holds the budget: the network stays unquantized.")
        else:
            lines.append(f"Kept: {self.kept.name}, in {place}.")
        pl_module.print("\n" + "\n".join(lines))
        picture = Path(trainer.default_root_dir) / "quantization.png"
        report.draw(picture, original, candidates, [name for name, why in refusals.items() if why])
        report.log_to_wandb(trainer, original, candidates, self.kept, picture)
