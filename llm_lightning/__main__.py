"""The entry of `llm-lightning`: it answers --help and --version at once, and imports the rest only for real work."""

import sys
from importlib import import_module

from llm_lightning import __version__
from llm_lightning.process.early_signal import note_early_signal

USAGE = """\
usage: llm-lightning COMMAND [--config FILE ...] [--KEY VALUE ...]

One application for the whole training life of a language model, on PyTorch Lightning.

commands:
  fit            train, or go on with a run that was stopped
  validate       loss of a model on the validation documents
  test           loss of a model on the test documents
  predict        let a model write, or a reward model score
  chat           talk with a model
  generate       let a model answer prompts several times each, and choose
  preview        show the training data as the model will see it
  augment        let a model write more training data, and filter it
  distill-cache  compute what a teacher finds likely, for fits that learn from it
  ablate         train with the synthetic data and without it, and compare
  report         one page about a run, or about several side by side, with paired tests
  evaluate       ask a model the items of benchmarks, each score with its interval
  merge          add an adapter to its network, or make one network of several
  compress       prune and quantize in combination, and keep what holds a budget best
  export         write a model in the formats of other programs, each proven to be the model
  check          what a fit will take of memory, time and disk, and whether it can start; nothing is trained
  slurm          submit one of these, or a chain of stages, to a SLURM cluster
  k8s            submit one of these to Kubernetes
  sky            submit one of these to any cloud, by SkyPilot
  ray            run one of these on Ray Train
  workspace      make a W&B workspace that shows what matters of a stage
  configs        list the configurations that --config takes by name, or copy them

The first things to try:
  llm-lightning fit --config quickstart/pretrain
  llm-lightning fit --config pretrain --data.path my_texts/ --trainer.max_steps 1000
  llm-lightning fit --config sft --model.backbone.path MODEL --data.path my.jsonl
  llm-lightning fit --config pretrain --print_config

Settings come from YAML files and flags, a later one over an earlier one, and from environment variables such as
LLM_LIGHTNING__TRAINER__MAX_STEPS=100. `llm-lightning fit --help` lists them; `--model.help CausalPretraining` and
`--data.help TextDataModule` list those of a class.

options:
  --debug    show the traceback of an error
  --version  print the version
  --help     print this text
"""

# Commands with flags of their own, and where their `run` is.
OTHERS = {
    "ablate": "llm_lightning.commands.ablate",
    "chat": "llm_lightning.commands.chat",
    "check": "llm_lightning.commands.check",
    "compress": "llm_lightning.commands.compress",
    "configs": "llm_lightning.commands.configs",
    "distill-cache": "llm_lightning.commands.distill_cache",
    "evaluate": "llm_lightning.commands.evaluate",
    "export": "llm_lightning.commands.export",
    "generate": "llm_lightning.commands.generate",
    "k8s": "llm_lightning.commands.launch.k8s",
    "merge": "llm_lightning.commands.merge",
    "ray": "llm_lightning.commands.launch.ray",
    "report": "llm_lightning.commands.report",
    "sky": "llm_lightning.commands.launch.sky",
    "slurm": "llm_lightning.commands.launch.slurm",
    "workspace": "llm_lightning.commands.workspace",
}
COMMANDS = ("fit", "validate", "test", "predict", "preview", "augment", *OTHERS)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a user's mistake, 130 stopped by Ctrl-C."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    words = [arg for arg in args if arg != "--debug"]
    if not words or words[0] not in COMMANDS:
        from llm_lightning_safety.redaction import redact

        given = redact(words[0]) if words else ""
        print(f"llm-lightning: there is no command {given!r}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if argv is None and words[0] == "fit":  # a process of its own
        note_early_signal()
    from llm_lightning.process.allocator import keep_freed_memory
    from llm_lightning.process.quiet import quiet_libraries
    from llm_lightning.process.redacted_output import redact_output
    from llm_lightning_safety.redaction import remember_arguments

    keep_freed_memory()
    remember_arguments(words)
    quiet_libraries()
    redact_output()
    if words[0] in OTHERS:
        return int(import_module(OTHERS[words[0]]).run(words[1:], debug=len(words) < len(args)))
    if argv is None:
        from llm_lightning.process.waiting import choose_waiting_policy

        choose_waiting_policy()
    from llm_lightning.cli import run

    return run(words, debug=len(words) < len(args))


if __name__ == "__main__":
    sys.exit(main())
