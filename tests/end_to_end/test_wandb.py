"""Every stage with W&B offline, read back by W&B's own reader of its log files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm_lightning.commands.workspace import STAGES, build
from tests.wandb_logs import history, read

CONFIGS = Path(__file__).parents[2] / "configs"
SECRET = "hf_" + "s3cr3tS3cr3t" * 3
RULE = "--model.rewards={length: {function: {class_path: llm_lightning.rewards.Length, init_args: {target: 3}}}}"
NETWORK = ["--model.backbone.path=network", "--data.batch_size=2"]
PRUNING = (
    "{class_path: Pruning, init_args: {structure: {class_path: Unstructured, init_args: {sparsity: 0.5}}, "
    "schedule: {class_path: Linear, init_args: {begin: 1, end: 2, interval: 1}}, num_batches: 1}}"
)
RUNS = {
    "pretrain": ["pretrain.yaml", "--data.path=texts.jsonl", "--data.vocab_size=300", "--data.seq_len=64",
                 "--data.batch_size=2", "--model.backbone.config.num_hidden_layers=1"],
    "sft": ["sft.yaml", *NETWORK, "--data.path=pairs.jsonl", "--data.seq_len=64",
            "--trainer.logger.init_args.log_model=true"],
    "reward": ["reward.yaml", *NETWORK, "--data.path=preferences.jsonl", "--data.seq_len=64"],
    "dpo": ["dpo.yaml", *NETWORK, "--data.path=preferences.jsonl", "--data.seq_len=64"],
    "ppo": ["ppo.yaml", *NETWORK, "--data.path=pairs.jsonl", "--data.max_prompt_tokens=64",
            "--model.rollout.sampling.max_new_tokens=8", RULE],
    "compress": ["sft.yaml", *NETWORK, "--data.path=pairs.jsonl", "--data.seq_len=64",
                 f"--trainer.callbacks+={PRUNING}",
                 "--trainer.callbacks+={class_path: Quantization, init_args: {schemes: [int8]}}"],
}  # fmt: skip
# Each is a run or two of its own.
STAGES_TO_RUN = [name if name == "sft" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
# Of what a stage has no run long enough for here, or leaves out where it is not possible.
NOT_HERE = {"throughput/tokens_per_s", "throughput/mfu", "train/explained_variance"}


class Runs:
    """Fits in one folder, whose records are read back."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.known: dict[str, list[dict]] = {}

    def of(self, stage: str) -> list[dict]:
        """A stage's records; it runs once."""
        if stage == "compress" and importlib.util.find_spec("torchao") is None:
            pytest.skip("torchao is not installed")
        if stage not in self.known:
            self.known[stage] = self.fit(stage, stage)
        return self.known[stage]

    def fit(self, stage: str, root: str, *options: str, **environment: str) -> list[dict]:
        config, *settings = RUNS[stage]
        command = [sys.executable, "-m", "llm_lightning", "fit", f"--config={CONFIGS / config}",
                   f"--config={CONFIGS / 'logger' / 'wandb.yaml'}", *settings, "--trainer.max_steps=3",
                   "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
                   f"--trainer.logger.init_args.notes={SECRET}", f"--trainer.default_root_dir={root}",
                   *options]  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        own = {"WANDB_MODE": "offline", "HF_TOKEN": SECRET, "LLM_LIGHTNING_CACHE": str(self.cache)}
        done = subprocess.run(
            command, cwd=self.folder, env=clean | own | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return read(sorted((self.folder / root).rglob("offline-run-*"))[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache, network) -> Runs:
    folder = tmp_path_factory.mktemp("wandb")
    pairs = [{"prompt": f"What is {i}?", "completion": f"A number, {i}."} for i in range(40)]
    preferences = [
        {"prompt": f"{i} {'abcde'[i % 5] * 30}", "chosen": "yes", "rejected": "n" + "o" * (i % 7)} for i in range(40)
    ]
    texts = [{"text": str(pair)} for pair in pairs]
    for name, records in (("pairs", pairs), ("preferences", preferences), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "network").symlink_to(network)
    return Runs(folder, cache)


def run_id(records: list[dict]) -> str:
    return next(record["run"]["run_id"] for record in records if record["type"] == "run")


def artifacts(records: list[dict]) -> dict[str, dict]:
    found = [record["artifact"] for record in records if record["type"] == "artifact"]
    return {each["name"]: each for each in found if not each["name"].startswith("run-")}


@pytest.mark.parametrize("stage", STAGES_TO_RUN)
def test_a_stage_logs_what_its_workspace_shows(runs, stage):
    shown = {name for plots in STAGES[stage].values() for metrics in plots for name in metrics}
    logged = {name for item in history(runs.of(stage)) for name in item}
    assert shown - logged <= NOT_HERE


@pytest.mark.parametrize("stage", STAGES_TO_RUN)
def test_no_secret_is_in_a_run(runs, stage):
    text = json.dumps(runs.of(stage))
    assert "***" in text and SECRET not in text


@pytest.mark.parametrize(
    ("stage", "table"),
    [
        ("sft", "samples"),
        pytest.param("ppo", "rollouts", marks=pytest.mark.slow),
        pytest.param("compress", "quantization/schemes", marks=pytest.mark.slow),
    ],
)
def test_samples_are_tables(runs, stage, table):
    assert [item for item in history(runs.of(stage)) if item.get(f"{table}._type") == "table-file"]


def test_rollouts_and_masks_are_drawn_over_steps_and_all_else_over_tokens(runs):
    axes = [record["metric"] for record in runs.of("sft") if "step_metric" in record.get("metric", {})]
    assert {axis["glob_name"]: axis["step_metric"] for axis in axes} == {
        "*": "tokens", "rollout/*": "trainer/global_step", "pruning/*": "trainer/global_step"
    }  # fmt: skip


@pytest.mark.slow
def test_data_and_models_are_joined_to_a_lineage(runs):
    first = runs.of("pretrain")
    (data,) = [each for each in artifacts(first).values() if each["type"] == "dataset"]
    assert data["use_after_commit"] and json.loads(data["metadata"])["path"] == "texts.jsonl"
    made = artifacts(first)[f"model-{run_id(first)}"]
    assert not made.get("use_after_commit") and "step-3" in made["aliases"]

    path = "--model.backbone.path=pretrain/model/best"
    second = runs.fit("sft", "next", path)
    used = artifacts(second)[f"model-{run_id(first)}"]
    assert used["use_after_commit"] and used["digest"] == made["digest"]
    assert f"model-{run_id(second)}" in artifacts(second)

    resumed = runs.fit("sft", "next", path, "--trainer.max_steps=4")
    assert run_id(resumed) == run_id(second)
    assert min(item["trainer/global_step"] for item in history(resumed) if "train/loss" in item) == 3


def test_the_model_is_uploaded_where_that_is_asked_for(runs):
    records = runs.of("sft")
    files = artifacts(records)[f"model-{run_id(records)}"]["manifest"]["contents"]
    assert {"model.json", "config.json", "model.safetensors"} <= {entry["path"] for entry in files}


def test_the_page_of_a_run_goes_with_it(runs):
    records = runs.of("sft")
    page = artifacts(records)[f"report-{run_id(records)}"]
    assert page["type"] == "report" and [entry["path"] for entry in page["manifest"]["contents"]] == ["report.html"]


@pytest.mark.slow
def test_a_sweep_starts_runs_of_their_own(runs):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((CONFIGS / "sweeps" / "learning_rate.yaml").read_text())
    arguments = {name: {"value": setting["min"]} for name, setting in sweep["parameters"].items()}
    flags = create_sweep_command_args({"args": arguments})["args"]
    assert create_sweep_command(sweep["command"])[-1] == "${args}"

    records = runs.fit("sft", "swept", *flags, WANDB_SWEEP_ID="s1", WANDB_RUN_ID="trial1")
    assert run_id(records) == "trial1"
    assert (runs.folder / "swept" / "s1" / "trial1" / "model" / "last").is_dir()


@pytest.mark.slow
def test_divergence_is_an_alert(runs):
    condition = "{class_path: Divergence, init_args: {window: 2, patience: 1, num_deviations: 1}}"
    stopping = f"--trainer.callbacks+={{class_path: StopWhen, init_args: {{conditions: [{condition}]}}}}"
    records = runs.fit("sft", "diverged", stopping, "--trainer.max_steps=12", "--model.optimizer.init_args.lr=10")
    assert "Run diverged" in [record["alert"]["title"] for record in records if record["type"] == "alert"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_workspace_has_the_sections_of_its_stage(stage):
    pytest.importorskip("wandb_workspaces")
    spec = build(stage, "team", "project")._to_model().model_dump_json()
    for section, plots in STAGES[stage].items():
        assert section in spec
        assert all(name in spec for metrics in plots for name in metrics)
