"""`llm-lightning merge`: an adapter added to its network, or several networks made into one."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError

from llm_lightning.errors import UserError
from llm_lightning.models.merging.adapter import merge_folder
from llm_lightning.models.merging.folders import merge_models
from llm_lightning.models.merging.methods import Merging, Method
from llm_lightning.process.command import run_command
from llm_lightning.settings.flags import FlagParser

USAGE = """\
usage: llm-lightning merge ADAPTER OUTPUT
       llm-lightning merge MODEL MODEL [MODEL ...] OUTPUT [--method METHOD] [--weights W,W,...] [--base BASE]
       llm-lightning merge MODEL MODEL [MODEL ...] OUTPUT --method soup --data PATH

The first adds an adapter to the weights of the network it was trained on, in float32, and writes the whole network in
its own dtype, with the tokenizer. Adapters that were trained on a quantized network are added to the unquantized one.

The second makes one network of several of the same shape and vocabulary, weight by weight, in float32. MODEL is the
folder of a network, or of an adapter, which stands for its network with all that it changes.

  --method METHOD   linear (default): the mean, or with --base the sum of the changes from it
                    slerp: along the arc between two networks
                    ties: the largest part of each change, and of these what most agree on in sign (needs --base)
                    dare: a random part of each change, enlarged by as much as is lost (needs --base)
                    soup: the mean of those that make it better, tried from the best one on (needs --data)
  --data PATH       of soup: text or conversations on which the loss is measured, and none of them was trained on
  --weights W,W     of each network (1 each); a mean divides them by their sum, changes are multiplied by them
  --base BASE       what the networks were trained from
  --density SHARE   of ties and dare: how much of a change is kept (0.2)
  --seed N          of dare (0)
"""

SOUP = "soup"


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `merge`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _run, debug=debug, mistakes=(UserError, OSError, SafetensorError))


def _run(args: list[str]) -> None:
    given = _parse(args)
    *models, output = given.folders
    if not models:
        raise UserError(f"merge takes two folders or more, the last one to write to; {output} alone is given.")
    if len(args) == 2:
        merge_folder(models[0], output)
        print(f"{output} holds the network with the adapter in it.")
        return
    if given.method == SOUP:
        _make_soup(given, models, output)
        return
    if given.data is not None:
        raise UserError(f"--data {given.data}: only --method {SOUP} measures anything; leave it out.")
    weights = tuple(given.weights or [1.0] * len(models))
    merge_models(models, given.base, output, Merging(given.method, weights, given.density, given.seed), print)
    print(f"{output} holds the {given.method} merge of {', '.join(map(str, models))}.")


def _parse(args: list[str]) -> Any:
    parser = FlagParser("llm-lightning merge", add_help=False, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--method", choices=[*get_args(Method), SOUP], default="linear")
    parser.add_argument("--weights", type=lambda text: [float(number) for number in text.split(",")])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--density", type=float, default=Merging.density)
    parser.add_argument("--seed", type=int, default=Merging.seed)
    return parser.parse_intermixed_args(args)


def _make_soup(given: Any, models: list[Path], output: Path) -> None:
    if given.data is None:
        raise UserError(f"--method {SOUP} keeps what lowers the loss on held-out text: name some by --data PATH.")
    for name in ("weights", "base"):
        if getattr(given, name) is not None:
            raise UserError(f"--{name}: --method {SOUP} takes equal means of whole networks; leave it out.")
    from datamodules import DataError
    from llm_lightning.evaluation.soup import make_soup

    try:
        tried = make_soup(models, output, _documents(given.data), print)
    except DataError as error:
        raise UserError(f"--data {given.data}: {error}") from error
    print(f"{output} holds the soup of {', '.join(str(models[each.number]) for each in tried if each.kept)}.")


def _documents(path: str) -> Callable[[str], Iterable[Any]]:
    """What reads conversations, or else texts, with a tokenizer."""

    def read(tokenizer: str) -> Iterable[Any]:
        from datamodules import DataError, InstructionDataModule, TextDataModule

        conversations = InstructionDataModule(path, tokenizer=tokenizer)
        try:
            for source in conversations.train_sources:
                conversations.find_units(source, conversations.root, look_again=False)
        except DataError as error:
            texts = TextDataModule(path, tokenizer=tokenizer)
            try:
                return list(texts.held_out_documents())
            except DataError as other:
                raise DataError(f"these are no conversations ({error}) and no texts ({other})") from None
        return list(conversations.held_out_documents())

    return read
