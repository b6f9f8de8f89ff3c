"""The network: read from a hub id, a folder or a .gguf file, or built from scratch by a transformers config."""

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.quantization_config import QuantizationConfigMixin

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import base_of, check_mergeable, is_adapter, merge, task_of
from llm_lightning.models.attention import ATTENTION, register_attention
from llm_lightning.models.encoder_decoder import encoder_decoder_behaviour
from llm_lightning.models.examination.examination import examine
from llm_lightning.models.generation import FILE as GENERATION
from llm_lightning.models.generation import mended, read_generation_config
from llm_lightning.models.loading.gguf import converted, gguf_config
from llm_lightning.models.loading.new_tokens import NEW_IDS, add_rows, new_ids, own_tokenizer
from llm_lightning.models.loading.sharding import Sharding, initialize, layers_of, load_weights
from llm_lightning.models.running.behaviour import Behaviour
from llm_lightning.models.running.recomputation import Recomputation, recompute_activations
from llm_lightning.models.tasks import ENCODER_DECODER, LANGUAGE, Task, trained_for, with_fresh_head

VOCAB_MULTIPLE = 64
"""A from-scratch vocabulary is rounded up to this: matrix products run slower on odd widths."""

DROPOUT_NAMES = (
    "attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout", "mlp_dropout", "dropout_rate",
)  # fmt: skip


@dataclass
class Backbone:
    """Which network, and how it runs. Exactly one of `path` and `config` is given.

    Args:
        path: hub id, folder, or .gguf file to read the weights from. For a folder with an adapter, its network is read
            and the adapter merged into it.
        config: transformers config of a network to start from scratch, by `class_path` and `init_args`. Where it
            leaves `vocab_size` at its class's default, the tokenizer decides.
        dtype: of the weights; by default what `trainer.precision` asks for (float32 under mixed precision).
        attention: `llm_lightning_documents` does no work across the documents of a packed row; any other name is
            given to transformers (`sdpa`, `eager`, `flash_attention_2`, ...), which then builds dense masks. Where an
            architecture cannot do with the default, `sdpa` or `eager` takes its place.
        activation_checkpointing: recompute each layer in the backward pass: less memory, about a third more time.
            `selective` keeps what is dear to compute, `offload` moves what is kept to the host: see
            `running/recomputation.py`.
        compile: compile each layer by torch.compile; pays off after the first minutes.
        dropout: all the dropout probabilities that the architecture has; by default what its config says.
        quantization: transformers config that the weights are quantized by as they are read, by `class_path`
            (`transformers.BitsAndBytesConfig`); only an adapter on top of them can then train.
        new_tokens: control tokens to add to tokenizer and network, such as those of a chat template; those that the
            network in `path` knows already stay as they are.
        allow_pickle: also read .bin weights, which can run code on loading.
        trust_remote_code: run code that comes with a hub model.
    """

    path: str | None = None
    config: PreTrainedConfig | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attention: str = ATTENTION
    activation_checkpointing: Recomputation = False
    compile: bool = False
    dropout: float | None = None
    quantization: QuantizationConfigMixin | None = None
    new_tokens: Sequence[str] = ()
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def read_config(self) -> PreTrainedConfig:
        """The architecture, without reading any weight.

        Raises:
            UserError: neither or both of `path` and `config`, nothing readable at `path`, or a quantization that is not
                installed.
        """
        if (self.path is None) == (self.config is None):
            given = "both are given" if self.path else "neither is given"
            raise UserError(
                f"model.backbone needs either `path` (hub id, folder, .gguf) or `config` (from scratch): {given}."
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise UserError(
                "model.backbone.activation_checkpointing=selective does not go with model.backbone.compile, whose "
                "compiled layers hide what they compute: leave out one, or set activation_checkpointing to true."
            )
        self._check_quantization()
        self._check_new_tokens()
        if self.path is not None and is_adapter(self.path):
            check_mergeable(Path(self.path).expanduser())
            return self._base().read_config()
        if self.path is None:
            assert self.config is not None
            config = copy.deepcopy(self.config)
        else:
            source, options = self._source()
            try:
                if "gguf_file" in options:
                    config = gguf_config(Path(source) / options["gguf_file"])
                else:
                    config = AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code)
            except (OSError, ValueError, StrictDataclassError) as error:
                raise UserError(f"model.backbone.path={self.path!r} cannot be read as a model: {error}") from error
        if self.dropout is not None:
            self._set_dropout(config)
        return config

    def trained_for(self) -> Task:
        """What the network in `path` was trained for, without reading any weight; raises as `read_config`."""
        config = self.read_config()
        folder = Path(self.path or "").expanduser()
        return task_of(folder) if self.path is not None and is_adapter(folder) else trained_for(config)

    def generation_config(self) -> tuple[GenerationConfig | None, dict[str, Any]]:
        """How the network of a folder or the hub generates, and what was left out of it: see `mended`.

        Raises:
            UserError: `path` says something that transformers refuses.
        """
        if self.path is not None and is_adapter(self.path) and not (Path(self.path).expanduser() / GENERATION).exists():
            return self._base().generation_config()
        if self.path is None or self.path.endswith(".gguf"):
            return None, {}
        return mended(read_generation_config(self._source()[0]))

    def behaviour(self, task: Task = LANGUAGE, config: PreTrainedConfig | None = None) -> Behaviour:
        """How the network has to be run, tried out without its weights: see `examine`; `config` where it is read."""
        config = task.configure(config or self.read_config())
        if task is ENCODER_DECODER:
            return encoder_decoder_behaviour(config, self.attention)
        return examine(config, self.attention, task, trust_remote_code=self.trust_remote_code)

    def build(
        self, tokenizer: PreTrainedTokenizerBase | None = None, task: Task = LANGUAGE, *, empty: bool = False
    ) -> PreTrainedModel:
        """The network, on the default device (Lightning makes that the rank's own), in training mode.

        Args:
            tokenizer: decides the vocabulary and the special tokens of a network from scratch, and has to fit one
                that is read.
            task: which head it has. One that the weights lack starts anew.
            empty: on the meta device, without weights: see `load_weights`.

        Raises:
            UserError: the tokenizer has more tokens than the network has embeddings, or there is no such head for this
                architecture.
        """
        register_attention()
        config = task.configure(self.read_config())
        behaviour = self.behaviour(task, config)
        if tokenizer is not None:
            self._fit_vocabulary(config, tokenizer)
        dtype = torch.get_default_dtype() if self.dtype is None else getattr(torch, self.dtype)
        generation = self.generation_config()[0] if task.head is None else None
        plan = replace(self, attention=behaviour.attention)
        if empty and self.path is None and behaviour.unruled:
            raise UserError(
                f"A network of the architecture {config.model_type} cannot start from scratch sharded: transformers "
                f"says what {behaviour.unruled} starts as only for a whole one. Take --config configs/trainer/ddp.yaml."
            )
        if self.path is None and behaviour.unruled:
            model = plan._untrained(config, dtype, task)
            task.start_head(model)
        else:
            model = plan._empty(config, dtype, task) if empty else plan._network(config, dtype, task)
        if self.new_tokens:
            assert self.path is not None
            ids = new_ids(self.new_tokens, tokenizer, self.path)
            setattr(model, NEW_IDS, add_rows(model, len(tokenizer or ()), ids))  # for an adapter on it
        behaviour.attach(model)
        if generation is not None:
            model.generation_config = generation
        model.config.use_cache = False
        model.train()
        if self.activation_checkpointing:
            recompute_activations(model, self.activation_checkpointing)
        if self.compile:
            for layer in model.get_decoder().layers if task.is_causal else layers_of(model):
                layer.compile()
        return model

    def _network(self, config: PreTrainedConfig, dtype: torch.dtype, task: Task) -> PreTrainedModel:
        if self.path is None:
            return self._from_scratch(config, dtype, task)
        if not is_adapter(self.path):
            return self._pretrained(config, dtype, task)
        folder = Path(self.path).expanduser()
        trained_for = task_of(folder)
        base = self._base(dtype="float32", new_tokens=()).build(task=trained_for)
        if (own := own_tokenizer(str(folder))) is not None:
            add_rows(base, len(own))  # where the adapter was trained with new tokens
        merged = merge(base, folder, dtype)
        return merged if trained_for == task else with_fresh_head(merged, task)

    def _base(self, **changes: Any) -> "Backbone":
        """The network of the adapter that `path` names."""
        assert self.path is not None
        options = {"activation_checkpointing": False, "compile": False} | changes
        return replace(self, path=base_of(Path(self.path).expanduser()), **options)

    def _from_scratch(self, config: PreTrainedConfig, dtype: torch.dtype, task: Task) -> PreTrainedModel:
        if is_deepspeed_zero3_enabled():
            model = self._untrained(config, dtype, task)  # transformers shards it as it builds it
        else:
            # In the same way as `load_weights`, for the same numbers; and torch's own numbers need not be drawn first.
            model = self._empty(config, dtype, task).to_empty(device=torch.get_default_device())
            initialize(model)
        task.start_head(model)
        return model

    def _empty(self, config: PreTrainedConfig, dtype: torch.dtype, task: Task) -> PreTrainedModel:
        with torch.device("meta"):
            model = self._untrained(config, dtype, task)
        if self.path is not None:
            model.name_or_path = model.config.name_or_path = self._weights_source()
        return model

    def _untrained(self, config: PreTrainedConfig, dtype: torch.dtype, task: Task) -> PreTrainedModel:
        return task.from_config(
            config, dtype=dtype, attn_implementation=self.attention, trust_remote_code=self.trust_remote_code
        )

    def load_weights(self, network: PreTrainedModel, task: Task, sharding: Sharding, names: Mapping[str, str]) -> None:
        """Load the weights of a network that was built empty; see `sharding.load_weights` for `names`.

        Raises:
            UserError: the folder has other weights than this network.
        """
        folder = None if self.path is None else Path(self._weights_folder())
        missing = load_weights(network, folder, sharding.device, names)
        head = {name for name in missing if task.head is not None and name.startswith(f"{task.head}.")}
        if missing - head:
            some = ", ".join(sorted(missing - head)[:3])
            raise UserError(
                f"model.backbone.path={self.path!r} lacks weights by the names {some}. Where transformers renames the "
                "weights of an architecture as it reads them, only --config configs/trainer/ddp.yaml can."
            )
        if folder is None or head:
            task.start_head(network)

    def check_sharded(self) -> None:
        """Raise `UserError` for what cannot be sharded as it is loaded."""
        if self.new_tokens:
            raise UserError(
                "model.backbone.new_tokens cannot be added to a network that is sharded: add them in a first run "
                "of one step by --config trainer/ddp, and train on from its model/last."
            )
        if self.quantization is not None:
            raise UserError("model.backbone.quantization cannot be sharded: take --config configs/trainer/ddp.yaml.")
        if self.path is not None and is_adapter(self.path):
            raise UserError(
                f"model.backbone.path={self.path!r} is an adapter, which would be merged on each rank into the whole "
                f"network: merge it first, by `llm-lightning merge {self.path} MERGED`."
            )

    def _weights_source(self) -> str:
        """Folder or hub id of the weights; an adapter folder names it, and it has to be found from anywhere."""
        source, options = self._source()
        if "gguf_file" in options:
            return str(converted(Path(source) / options["gguf_file"]))
        return str(Path(source).resolve()) if Path(source).is_dir() else source

    def _weights_folder(self) -> str:
        """Where the .safetensors are."""
        source = self._weights_source()
        if not Path(source).is_dir():
            from huggingface_hub import snapshot_download

            source = snapshot_download(source, allow_patterns=["*.safetensors", "*.json"])
        if not any(Path(source).glob("*.safetensors")):
            raise UserError(f"model.backbone.path={self.path!r} has no .safetensors: sharded loading needs them.")
        return source

    def _pretrained(self, config: PreTrainedConfig, dtype: torch.dtype, task: Task) -> PreTrainedModel:
        source = self._weights_source()
        try:
            model = task.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                attn_implementation=self.attention,
                use_safetensors=None if self.allow_pickle else True,
                trust_remote_code=self.trust_remote_code,
                **({} if self.quantization is None else {"quantization_config": copy.deepcopy(self.quantization)}),
            )
        except OSError as error:
            hint = "" if self.allow_pickle else " (model.backbone.allow_pickle=true also reads .bin weights)"
            raise UserError(f"model.backbone.path={self.path!r} has no weights to read{hint}: {error}") from error
        except ImportError as error:
            raise UserError(f"model.backbone.quantization: {error}") from error
        module: Any
        for module in model.modules():
            # bitsandbytes 0.50 rewrites weights for a bfloat16 kernel at the first evaluation on such CPUs: training
            # after it would go on from other numbers, and saving can spoil them.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        model.name_or_path = source
        return model

    def _check_new_tokens(self) -> None:
        if isinstance(self.new_tokens, str) or not all(self.new_tokens):
            raise UserError(f"model.backbone.new_tokens={self.new_tokens!r}: give a list of texts that are not empty.")
        if self.new_tokens and self.path is None:
            raise UserError(
                "model.backbone.new_tokens are for a network that is trained already (model.backbone.path); one from "
                "scratch has all tokens of its tokenizer."
            )

    def _check_quantization(self) -> None:
        if self.quantization is None:
            return
        if self.path is None or is_adapter(self.path):
            raise UserError(
                "model.backbone.quantization needs weights to read: give a model folder, a .gguf file or a hub id by "
                "model.backbone.path (an adapter is merged first, by `llm-lightning merge`)."
            )
        name = type(self.quantization).__name__
        needed = {"BitsAndBytesConfig": ("bitsandbytes", "llm-lightning[qlora]"), "TorchAoConfig": ("torchao",) * 2}
        package, install = needed.get(name, ("torch", "torch"))
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"model.backbone.quantization={name} needs {package}, which is not installed: pip install '{install}'."
            )

    def _source(self) -> tuple[str, dict[str, Any]]:
        """What to give to `from_pretrained`: a repository or folder, and options."""
        assert self.path is not None
        path = Path(self.path).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise UserError(f"model.backbone.path={self.path!r}: there is no such file.")
            return str(path.parent), {"gguf_file": path.name}
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1
        if looks_local and not path.is_dir():
            raise UserError(
                f"model.backbone.path={self.path!r}: there is no such folder. Give a model folder, a .gguf file or a "
                "hub id such as HuggingFaceTB/SmolLM2-135M."
            )
        return (str(path) if path.is_dir() else self.path), {}

    def _set_dropout(self, config: PreTrainedConfig) -> None:
        names = [name for name in DROPOUT_NAMES if hasattr(config, name)]
        if not names:
            raise UserError(f"model.backbone.dropout={self.dropout}: {config.model_type} has no dropout to set.")
        for name in names:
            setattr(config, name, self.dropout)

    def _fit_vocabulary(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        num_tokens = len(tokenizer)
        if self.path is None and config.vocab_size == type(config)().vocab_size:
            config.vocab_size = -(-num_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        if config.vocab_size < num_tokens - len(self.new_tokens):
            raise UserError(
                f"The tokenizer has {num_tokens} tokens, the network only {config.vocab_size} embeddings. Name the "
                "network's own tokenizer (--tokenizer), name the tokens to add in model.backbone.new_tokens, or raise "
                "vocab_size in model.backbone.config."
            )
        if self.path is None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(config, name, getattr(tokenizer, name))
            if config.is_encoder_decoder:
                config.decoder_start_token_id = config.pad_token_id  # as T5 begins to write
