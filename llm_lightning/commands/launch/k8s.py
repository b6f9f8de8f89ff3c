"""`llm-lightning k8s ...`: writes the manifest of a run on Kubernetes, checks and submits it."""

import shutil
import subprocess
from pathlib import Path

from llm_lightning.commands.launch.artefact import given_files, refuse_secrets, rendered
from llm_lightning.commands.launch.slurm import COMMANDS
from llm_lightning.errors import UserError
from llm_lightning.launch.jobset import SETTINGS, PodOptions, manifests, name_of
from llm_lightning.launch.options import refuse_owned
from llm_lightning.process.command import run_command
from llm_lightning.settings.flags import FlagParser

USAGE = """\
usage: llm-lightning k8s fit --config FILE ... --image IMAGE --volume CLAIM:PATH [--nodes N] [--gpus-per-node N]
                             --trainer.default_root_dir PATH/RUN [--KEY VALUE ...]

Writes a JobSet (jobset.x-k8s.io), checks it, and creates it by kubectl. `fit` (or validate, test, predict) is one run.
All flags but these are the run's own, as without `k8s`. Configurations that are files here go along in a ConfigMap.

  --image IMAGE         container image whose `python` has llm-lightning
  --nodes N             pods (1)
  --gpus-per-node N     GPUs of each, one rank for each GPU; without it the run is on CPUs
  --tasks-per-node N    ranks of each on CPUs (1)
  --cpus, --memory Q    of a pod, such as 8 and 64Gi
  --volume CLAIM:PATH   a persistent volume claim and where it is mounted; one holds the run folder; repeatable
  --env-from NAME       a Secret whose keys become environment variables, such as WANDB_API_KEY; repeatable
  --node-selector L=V   a label that nodes must have; repeatable
  --name, --namespace, --queue NAME   of the JobSet (the run folder's name), and of Kueue's queue
  --stop-before SECONDS that a pod has to save when it is told to go (120)
  --max-restarts N      attempts after failures (3); pre-empted ones do not count, and mistakes (exit code 2) end it
  --dry-run             print the manifest and submit nothing
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: what follows `k8s`.
        debug: show the traceback of an error.
    """
    return run_command(args, USAGE, _run, debug=debug)


def _run(args: list[str]) -> None:
    from llm_lightning.commands.given_settings import read_settings

    if args[0] not in COMMANDS:
        raise UserError(f"k8s {args[0]}: there are {', '.join(COMMANDS)}.")
    options, rest = parse_options(args[1:])
    way_out = "put it into a Secret of the cluster, and name that by --env-from"
    refuse_secrets(args, "the manifest", way_out)
    root = str(read_settings([args[0], *rest]).trainer.default_root_dir)
    options.check_root(root)
    arguments, files = given_files(rest, SETTINGS, "the manifest", way_out)
    name = options.name or name_of(Path(root).name)
    text = rendered(manifests(options, name, options.arguments(args[0], arguments, root), files))
    if options.dry_run:
        print(text, end="")
        return
    _kubectl(["create", "--dry-run=server", "-f", "-"], text)
    print(_kubectl(["create", "-f", "-"], text), end="")
    print(f"Its output: kubectl logs -f --selector jobset.sigs.k8s.io/jobset-name={name}")


def parse_options(args: list[str]) -> tuple[PodOptions, list[str]]:
    """Split a command line into the pods' flags, checked, and the run's own arguments, in their order.

    Raises:
        UserError: a flag's value cannot work, or a setting is given that the flags decide.
    """
    parser = FlagParser(add_help=False, allow_abbrev=False)
    for name in ("nodes", "gpus-per-node", "tasks-per-node", "stop-before", "max-restarts"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("image", "cpus", "memory", "name", "namespace", "queue"):
        parser.add_argument(f"--{name}")
    for name, place in (("volume", "volumes"), ("env-from", "env_from"), ("node-selector", "node_selector")):
        parser.add_argument(f"--{name}", action="append", dest=place)
    parser.add_argument("--dry-run", action="store_true")
    known, rest = parser.parse_known_args(args)
    options = PodOptions(**{name: value for name, value in vars(known).items() if value is not None})
    options.check()
    refuse_owned(rest)
    return options, rest


def _kubectl(args: list[str], manifest: str) -> str:
    if shutil.which("kubectl") is None:
        raise UserError(
            "There is no kubectl on this machine: run this where the cluster is in reach, or add --dry-run."
        )
    done = subprocess.run(["kubectl", *args], input=manifest, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"kubectl refuses the run: {done.stderr.strip()}")
    return done.stdout
