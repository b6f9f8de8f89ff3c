"""The settings of a run that belong to no single part of it."""

from typing import Any


def add_run_settings(parser: Any) -> None:
    """Add them to a `LightningArgumentParser`."""
    parser.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="Hub id or folder of the tokenizer for data and model; default: the one of model.backbone.path, else "
        "one is trained from the corpus.",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        default=True,
        help="Go on from the newest checkpoint in the run folder; false moves that run aside and starts over.",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="Let the model write the data of a SyntheticDataModule anew, with what it learned, so many times; "
        "each round is a run in round-1, round-2, ... of the run folder.",
    )
    parser.add_argument(
        "--check_memory",
        type=bool,
        default=True,
        help="Refuse a run that cannot fit into memory before any weight is read; false starts it all the same.",
    )
    parser.add_argument(
        "--check_ranks",
        type=bool,
        default=True,
        help="Compare versions, clocks and network of several ranks at the start, and name the ones that do not come; "
        "false leaves it out.",
    )
