"""What is run on a GPU, in the order of what it is worth, and the same at tiny sizes as its rehearsal."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

OURS = "llm-lightning"


@dataclass(frozen=True)
class Step:
    """One command, which appends its figures to a file.

    Args:
        name: tells it from the others; `/` parts it.
        command: `{json}` in it stands for the file of figures, `{work}` for a folder that all steps share, `{out}` for
            the folder of results.
        limit: seconds until it is cut.
    """

    name: str
    command: tuple[str, ...]
    limit: int


@dataclass(frozen=True)
class Sizes:
    """How large all is.

    Args:
        models: of pretraining, with the (rows, tokens a row) of their steps.
        stage_model: of all other steps.
        lengths: tokens a prompt, and tokens written, of inference.
        answers: completions a step of PPO and of a rollout.
        precision: of training.
        device: `cpu` or `cuda`.
        limit: seconds of a usual step.
    """

    models: dict[str, tuple[tuple[int, int], ...]]
    stage_model: str
    lengths: tuple[int, int]
    answers: int
    precision: str
    device: str
    limit: int


FULL = Sizes(
    {"1b": ((4, 4096), (2, 8192)), "135m": ((16, 4096), (8, 8192))}, "135m", (2048, 128), 128, "bf16-mixed", "cuda", 150
)
REHEARSAL = Sizes({"tiny": ((2, 128), (1, 256))}, "tiny", (32, 8), 4, "32-true", "cpu", 300)


def module(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments))


def steps(sizes: Sizes) -> list[Step]:
    """In the order in which they are run: should the time end early, the last ones are missing."""
    short, long = zip(*((model, shape) for model, shape in sizes.models.items()), strict=True)
    first = [(model, shapes[0]) for model, shapes in zip(short, long, strict=True)]
    rest = [(model, shape) for model, shapes in zip(short, long, strict=True) for shape in shapes[1:]]
    return [
        Step("device", module("on_gpu.device", "--device", sizes.device, "--json", "{json}"), sizes.limit),
        Step("tests", module("on_gpu.tests", "--device", sizes.device, "--json", "{json}"), 2 * sizes.limit),
        *(step for model, shape in first for step in pretraining(model, shape, sizes, FIRST)),
        *inference(sizes),
        *stages(sizes),
        *(profile(model, shape, sizes) for model, shape in first),
        *(step for model, shape in first for step in pretraining(model, shape, sizes, FURTHER)),
        *(step for model, shape in rest for step in pretraining(model, shape, sizes, LONG)),
    ]


FIRST = (f"{OURS}-compile", "bare-compile", OURS, "transformers")
FURTHER = ("bare", "transformers-compile", f"{OURS}-checkpointing", f"{OURS}-fsdp2")
LONG = (f"{OURS}-compile", "bare-compile", f"{OURS}-compile-checkpointing")


def pretraining(model: str, shape: tuple[int, int], sizes: Sizes, contenders: tuple[str, ...]) -> Iterator[Step]:
    """A contender a step."""
    rows, seq_len = shape
    for name in contenders:
        command = module(
            "on_gpu.pretraining", "--contender", name, "--model", model, "--rows", rows, "--seq_len", seq_len,
            "--longest", longest(model, sizes), "--precision", sizes.precision, "--device", sizes.device,
            "--work", "{work}", "--json", "{json}",
        )  # fmt: skip
        yield Step(f"pretraining/{model}/{seq_len}/{name}", command, sizes.limit)


def stages(sizes: Sizes) -> Iterator[Step]:
    """Fine-tuning, rewards, PPO and GRPO, rollouts."""
    shared = ("--model", sizes.stage_model, "--device", sizes.device, "--repeats", 1, "--json", "{json}")
    precision = ("--precision", sizes.precision)
    for method in ("full", "lora", "lora-int8"):
        compiled = [f"{OURS}-compile"] if method == "full" else []
        command = module("sft", *shared, *precision, "--method", method, "--only", OURS, *compiled)
        yield Step(f"sft/{method}", command, 2 * sizes.limit)
    data = ("--data", "{work}/transcripts.jsonl")
    yield Step("transcripts", module("on_gpu.transcripts", "{work}/transcripts.jsonl"), sizes.limit)
    yield Step("reward", module("reward", *shared, *precision, *data, "--only", OURS), 2 * sizes.limit)
    answers = ("--answers", sizes.answers)
    ppo = module("ppo", *shared, *precision, *answers, "--only", OURS, f"{OURS}-grpo")
    yield Step("ppo", ppo, 2 * sizes.limit)
    yield Step("rollouts", module("rollouts", *shared, *precision, *answers), 2 * sizes.limit)


def inference(sizes: Sizes) -> Iterator[Step]:
    """Quantized and sparse networks, a scheme a step."""
    for scheme in ("bfloat16", "int8", "int8-dynamic", "int4", "float8", "float8-dynamic", "2:4"):
        command = module(
            "on_gpu.inference", "--scheme", scheme, "--model", "tiny" if sizes.device == "cpu" else "1b", "--device",
            sizes.device, "--prompt", sizes.lengths[0], "--new", sizes.lengths[1], "--json", "{json}",
        )  # fmt: skip
        yield Step(f"inference/{scheme}", command, sizes.limit)


def longest(model: str, sizes: Sizes) -> int:
    """Tokens of the longest rows, which the weights are made for."""
    return max(seq_len for _, seq_len in sizes.models[model])


def profile(model: str, shape: tuple[int, int], sizes: Sizes) -> Step:
    """A step of pretraining, eager, whose operators have their names."""
    command = module(
        "on_gpu.profile", "--model", model, "--rows", shape[0], "--seq_len", shape[1],
        "--longest", longest(model, sizes), "--precision", sizes.precision,
        "--device", sizes.device, "--work", "{work}", "--trace", f"{{out}}/trace_{model}.json.gz", "--json", "{json}",
    )  # fmt: skip
    return Step(f"profile/{model}", command, sizes.limit)
