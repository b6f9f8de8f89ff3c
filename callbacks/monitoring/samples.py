"""Texts that the model writes while it learns."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.random_state import generators_kept
from callbacks.contract import HasExamplePrompts, HasTokenizer, HoldsNetwork, offered, required
from callbacks.errors import CallbackError
from callbacks.network import evaluating, is_sharded
from callbacks.phase import is_validating_fit
from callbacks.trainer_parts import datamodule_of, wandb_loggers
from llm_lightning_safety.files import make_folder, write_text

# The empty prompt lets the model begin a document; the others are common openings of English text.
DEFAULT_PROMPTS = ("", "The", "This is", "How to")
# Plain sampling of a small model rambles and greedy decoding repeats itself; this lies between.
DEFAULT_GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}


class Samples(Callback):
    """Generates a few texts after each validation, into `samples/step-000100.txt` and a table of a W&B logger.

    The same seed is used each time, so that texts of two steps differ by the weights and not by the draw; the
    training's generators are left untouched. The first rank generates alone, unless the weights are sharded: then
    every rank takes part. A failed generation (out of memory, a full disk) is a warning and training goes on.

    Args:
        prompts: Texts to continue; an empty one begins a document. If not given: the first validation prompts of a
            DataModule that has some (`example_prompts`), else some English openings.
        max_new_tokens: Tokens to write behind a prompt. 64 show whether sentences hold together, and cost a small
            model on a CPU about half a second.
        generation: Settings for `model.generate`, over those of plain sampling at temperature 0.8 and top_p 0.95.

    Raises:
        CallbackError: `generation` holds a name that `transformers.GenerationConfig` does not know, or there is no
            network or no tokenizer (before training).
    """

    def __init__(
        self,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 64,
        generation: dict[str, Any] | None = None,
    ) -> None:
        self.prompts = None if prompts is None else list(prompts)
        self.max_new_tokens = max_new_tokens
        self.generation = DEFAULT_GENERATION | (generation or {})

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        from transformers import GenerationConfig

        unknown = self.generation.keys() - vars(GenerationConfig()).keys()
        if unknown:
            raise CallbackError(
                f"Samples.generation: unknown setting {sorted(unknown)[0]!r}; see transformers.GenerationConfig."
            )

        if stage == "fit":
            required(pl_module, HasTokenizer, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        required(pl_module, HoldsNetwork, self)
        if required(pl_module, HasTokenizer, self).tokenizer is None:
            raise CallbackError(
                "Samples needs a tokenizer to read and write text; set `tokenizer`, or leave Samples out."
            )

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer):
            return
        network = required(pl_module, HoldsNetwork, self).model
        if not network.can_generate() or getattr(network.config, "is_encoder_decoder", False):
            return  # an encoder-decoder goes on from no prompt
        if not (trainer.is_global_zero or is_sharded(network)):
            return
        try:
            tokenizer, prompts = required(pl_module, HasTokenizer, self).tokenizer, self._prompts(trainer)
            with trainer.precision_plugin.forward_context():
                texts = generate_texts(network, tokenizer, prompts, self.max_new_tokens, self.generation)
            if trainer.is_global_zero:
                self._write(trainer, [_in_words(prompt, tokenizer) for prompt in prompts], texts)
        except (RuntimeError, OSError) as error:
            warnings.warn(f"No samples at step {trainer.global_step}: {error}", stacklevel=2)

    def _prompts(self, trainer: Trainer) -> list[str] | list[list[int]]:
        if self.prompts is not None:
            return self.prompts
        data = offered(datamodule_of(trainer), HasExamplePrompts)
        return list(DEFAULT_PROMPTS) if data is None else data.example_prompts(len(DEFAULT_PROMPTS))

    def _write(self, trainer: Trainer, prompts: list[str], texts: list[str]) -> None:
        folder = Path(trainer.default_root_dir) / "samples"
        make_folder(folder)
        blocks = [f"--- prompt: {prompt!r}\n{prompt}{text}\n" for prompt, text in zip(prompts, texts, strict=True)]
        write_text(folder / f"step-{trainer.global_step:06d}.txt", "\n".join(blocks))
        rows = [[str(trainer.global_step), prompt, text] for prompt, text in zip(prompts, texts, strict=True)]
        for logger in wandb_loggers(trainer):
            logger.log_text("samples", columns=["step", "prompt", "text"], data=rows)


def generate_texts(
    network: Any,
    tokenizer: Any,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int,
    generation: dict[str, Any],
) -> list[str]:
    """Continues each prompt, all in one left-padded batch.

    Args:
        network: A `transformers.PreTrainedModel` or `peft.PeftModel`; put in eval mode meanwhile.
        tokenizer: Its tokenizer.
        prompts: Texts or token ids; an empty one becomes the token that begins (or, without one, ends) a document.
        max_new_tokens: Tokens to write behind each.
        generation: Settings for `generate`.

    Returns:
        What follows each prompt, without special tokens.

    Raises:
        CallbackError: A prompt is empty and the tokenizer has neither a BOS nor an EOS token to begin with.
    """
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = [(tokenizer(each)["input_ids"] if isinstance(each, str) else each) or [begin] for each in prompts]
    if [None] in rows:
        raise CallbackError("Samples.prompts: the tokenizer has no token that begins a text; give prompts with words.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (begin or 0)
    width = max(map(len, rows))
    device = network.device
    input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    with evaluating(network), torch.no_grad(), generators_kept(device):
        torch.manual_seed(0)
        output_ids = network.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            remove_invalid_values=True,  # a diverged network must not raise a device-side assertion in CUDA
            **generation,
        )
    return tokenizer.batch_decode(output_ids[:, width:], skip_special_tokens=True)


def _in_words(prompt: str | list[int], tokenizer: Any) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
