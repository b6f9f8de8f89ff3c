"""Which chat template writes conversations down: a tokenizer's own, one that comes with us, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja")))
TOOL_USE = "tool_use"  # what transformers calls a tokenizer's template for conversations with tools
CHATML_TOKENS = {"<|im_start|>", "<|im_end|>"}


def find_template(tokenizer: PreTrainedTokenizerFast, wanted: str | None) -> str:
    """The Jinja text of a chat template.

    Args:
        tokenizer: what it has itself is taken where nothing is wanted.
        wanted: a name (`chatml`, `llama3`, `mistral`, or one that the tokenizer gives to one of its own), or a file.

    Raises:
        DataError: there is no such template, or none is wanted and the tokenizer has none.
    """
    own, known = tokenizer.chat_template, ", ".join(NAMES)
    if isinstance(own, dict) and wanted in own:
        return own[wanted]
    if wanted is None:
        if isinstance(own, dict):
            own = own.get("default")
        if own:
            return own
        if tokenizer.get_vocab().keys() >= CHATML_TOKENS:
            return (FOLDER / "chatml.jinja").read_text()
        raise DataError(f"template: the tokenizer has no chat template; name one of {known}, or a file")
    if wanted in NAMES:
        return (FOLDER / f"{wanted}.jinja").read_text()
    if Path(wanted).expanduser().is_file():
        return Path(wanted).expanduser().read_text(encoding="utf-8")
    raise DataError(f"template: {wanted!r} is neither a file nor one of {known}")


def set_template(tokenizer: PreTrainedTokenizerFast, wanted: str | None) -> None:
    """Let a tokenizer write conversations by `find_template`.

    Templates that it has beside its own (`tool_use`, `rag`) stay; one that is wanted takes the place of them all, since
    they end a turn in their own way.
    """
    jinja, own = find_template(tokenizer, wanted), tokenizer.chat_template
    tokenizer.chat_template = own | {"default": jinja} if wanted is None and isinstance(own, dict) else jinja
