"""`llm-lightning export`: a trained model in the formats of other programs, each proven to be the model."""

import argparse
from pathlib import Path

from safetensors import SafetensorError

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report
from llm_lightning.settings.flags import FlagParser

USAGE = """\
usage: llm-lightning export FOLDER --to TARGET[:FORMAT] [TARGET[:FORMAT] ...] --output DIR [options]
       llm-lightning export --make ENVIRONMENT
       llm-lightning export --check TARGET[:FORMAT] [TARGET[:FORMAT] ...]

Writes a trained model in other formats, and proves each: a process of its own loads what was written, without any code
of this project, and answers the same questions as the trained model. Where token ids or rendered conversations differ,
or a limit is passed, nothing is left of that export, and the exit code is 1.

FOLDER is a model's or an adapter's, such as RUN/model/best, or a .gguf file. An adapter is merged in float32 into the
unquantized network. The targets, and their formats with the default first:

{targets}

options:
  --output DIR                  gets a folder TARGET-FORMAT for each export, with an export_manifest.json
  --text PATH                   a text, whose perplexity is measured; by default one that comes with the package
  --text_tokens N               at most so many tokens of it (4096)
  --max_kl X                    limit of the mean KL divergence of the next token, in nats
  --max_perplexity_increase X   limit of the perplexity's increase on the text; 0.01 is 1 %
  --overwrite                   replace what lies there under the same name

--make prepares the environment of a target that needs one of its own; it is done once.
--check only says whether there are such targets and environments, by the exit code 0 or 2.

What is there already, of the same model and proven in the same way, is kept: a command that was stopped goes on.
"""

REFUSED = 1


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command.

    Args:
        args: what follows `export`.
        debug: show the traceback of an error.

    Returns:
        0 where all exports are there, 1 where one was refused, 2 for a user's mistake.
    """
    if not args or "--help" in args or "-h" in args:
        print(USAGE.format(targets=_targets()), end="")
        return 0
    try:
        if args[0] == "--make":
            return _make(args[1:])
        if args[0] == "--check":
            return _check(args[1:])
        return _export(_parse(args))
    except (UserError, OSError, SafetensorError) as error:
        return report(error, debug)


def _make(names: list[str]) -> int:
    from llm_lightning.export.environments import ENVIRONMENTS, make

    if not names:
        raise UserError(f"--make takes the name of an environment: {', '.join(ENVIRONMENTS)}.")
    for name in names:
        print(f"{name}: {make(name)}")
    return 0


def _check(words: list[str]) -> int:
    from llm_lightning.export import TARGETS, Wanted

    for word in words:
        TARGETS[Wanted.parse(word).target].python()
    return 0


def _targets() -> str:
    from llm_lightning.export import TARGETS

    width = max(map(len, TARGETS))
    lines = []
    for name, target in TARGETS.items():
        what = (target.__doc__ or "").splitlines()[0]
        lines.append(f"  {name:{width}}  {', '.join(target.formats)}\n  {'':{width}}  {what}")
    return "\n".join(lines)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = FlagParser("llm-lightning export", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--to", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--text_tokens", type=int, default=4096)
    parser.add_argument("--max_kl", type=float)
    parser.add_argument("--max_perplexity_increase", type=float)
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args(args)


def _export(given: argparse.Namespace) -> int:
    from llm_lightning.export import Proof, Wanted, export
    from llm_lightning.export.proof.table import table

    proof = Proof(given.text, given.text_tokens, given.max_kl, given.max_perplexity_increase)
    wanted = [Wanted.parse(text) for text in given.to]
    result = export(
        given.folder, wanted, given.output, proof, lambda line: print(line, flush=True), overwrite=given.overwrite
    )
    rows = []
    for each in result.outcomes:
        if each.comparison is not None:
            rows.append((each.name, each.size, each.comparison))
        rows += [(f"  in {engine}", each.size, found) for engine, found in each.others.items()]
    print()
    print(table(rows, (result.size, result.said)))
    refused = [each for each in result.outcomes if each.refused]
    for each in refused:
        print(f"\n{each.name} was refused, and nothing is left of it: {'; '.join(each.refused)}")
    if len(refused) < len(result.outcomes):
        print(f"\nExports: {given.output}")
    return REFUSED if refused else 0
