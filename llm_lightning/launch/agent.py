"""torchrun under the variables that an engine sets (`PET_*`), with the exit code of the rank that failed first.

    python -m llm_lightning.launch.agent fit --config ...

torchrun itself ends with 1 whatever happened, and who started it could not tell a mistake in a setting (2), which
another attempt would not mend, from a lost rank, which it would.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(arguments: list[str] | None = None) -> int:
    """Start a node's ranks and wait for them; returns 0, or the code of the one that failed first."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        run.run(run.parse_args(["--module", "llm_lightning", *arguments]))
    except ChildFailedError as error:
        return exit_code(error)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def exit_code(error: "ChildFailedError") -> int:
    """As a shell gives it: of a rank that a signal ended 128 and its number."""
    _, failure = error.get_first_failure()
    return 128 - failure.exitcode if failure.exitcode < 0 else int(failure.exitcode)


if __name__ == "__main__":
    sys.exit(main())
