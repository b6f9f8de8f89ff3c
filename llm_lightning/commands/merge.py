"""`llm-lightning merge ADAPTER OUTPUT`: the network with its adapter in it, as a folder that needs no peft."""

from pathlib import Path

from safetensors import SafetensorError

from llm_lightning.errors import UserError
from llm_lightning.models.merge import merge_folder
from llm_lightning.process.redacted_output import report

USAGE = """\
usage: llm-lightning merge ADAPTER_FOLDER OUTPUT_FOLDER

Adds an adapter to the weights of the network it was trained on, in float32, and writes the whole network in its own
dtype, with the tokenizer. Adapters that were trained on a quantized network are added to the unquantized one.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: adapter folder and output folder.
        debug: show the traceback of an error.
    """
    if "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    try:
        if len(args) != 2:
            raise UserError(f"merge takes two folders, the adapter's and the output's; {len(args)} are given.")
        merge_folder(Path(args[0]), Path(args[1]))
    except (UserError, OSError, SafetensorError) as error:
        return report(error, debug)
    print(f"{args[1]} holds the network with the adapter in it.")
    return 0
