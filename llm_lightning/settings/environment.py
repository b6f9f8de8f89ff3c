"""Settings from environment variables: LLM_LIGHTNING__TRAINER__MAX_STEPS=100 is --trainer.max_steps=100."""

from collections.abc import Mapping

PREFIX = "LLM_LIGHTNING__"


def with_environment(args: list[str], environment: Mapping[str, str]) -> list[str]:
    """Put the environment's settings among the arguments: over the YAML files, under the flags.

    They become ordinary arguments, so that a misspelt one is the same error as a misspelt flag (jsonargparse's own
    support drops settings of a class silently).

    Args:
        args: command and arguments.
        environment: usually `os.environ`.
    """
    names = sorted((name for name in environment if name.startswith(PREFIX)), key=lambda name: (name.count("__"), name))
    settings = [f"--{name.removeprefix(PREFIX).lower().replace('__', '.')}={environment[name]}" for name in names]
    after = 1
    for index, arg in enumerate(args):
        if arg in ("--config", "-c"):
            after = index + 2
        elif arg.startswith("--config="):
            after = index + 1
    return [*args[:after], *settings, *args[after:]]
