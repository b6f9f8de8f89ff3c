"""`llm-lightning report`: one page about a run, or about several side by side."""

from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report as report_error
from llm_lightning.report.page import write_report
from llm_lightning.settings.flags import FlagParser

USAGE = """\
usage: llm-lightning report RUN [RUN ...] [--output report.html]

Writes one HTML page about a run: what was trained and how, its curves, samples, evaluations and compression.
Several runs stand side by side: their curves together, the settings that differ, and for evaluations of the same
items paired tests against the first run.

A RUN is a run's folder, that of an evaluation, or that of answers of `generate`. The page needs nothing beside
itself. By default it is written to RUN/report.html, for several runs to report.html here.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `report`.
        debug: show the traceback of an error.
    """
    if not args or "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    parser = FlagParser("llm-lightning report", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, metavar="FILE")
    try:
        known = parser.parse_args(args)
        output = known.output or (known.runs[0] if len(known.runs) == 1 else Path()) / "report.html"
        if output.is_dir():
            raise UserError(f"--output {output} is a folder: name a file, such as {output / 'report.html'}.")
        write_report(known.runs, output)
    except (UserError, OSError) as error:
        return report_error(error, debug)
    print(f"Report: {output}")
    return 0
