"""The GPU day's runner: what a cut loses, what a second start does, and the tables; what wheels a machine needs."""

import json
import sys

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import gpu
from benchmarks.gpu_wheels import lacking, read_image
from benchmarks.on_gpu.figures import append, tables
from benchmarks.on_gpu.plan import FULL, REHEARSAL, Step, steps
from benchmarks.on_gpu.pretraining import CONTENDERS, token_flops
from benchmarks.workload import SHAPES
from callbacks.monitoring.flops import TokenFlops

FIELDS = '"model": "m", "metric": "speed", "value": 2.5, "unit": "x/s", "settings": {}'
ROW = '{"benchmark": "b", "contender": "%s", ' + FIELDS + "}"
WRITE = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); "


def step(name, then, limit=60):
    return Step(name, (sys.executable, "-c", WRITE + then, "{json}", ROW % name), limit)


@pytest.fixture
def plan(monkeypatch):
    made = [step("first", ""), step("cut", "time.sleep(60)", limit=2), step("fails", "sys.exit(3)"), step("last", "")]
    monkeypatch.setattr(gpu, "steps", lambda sizes: made)
    return made


def test_a_cut_loses_one_step_and_the_next_start_goes_on(plan, tmp_path, capfd):
    assert gpu.main(["--folder", str(tmp_path)]) == 1
    ends = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    expected = [("first", "done"), ("cut", "cut"), ("fails", "failed"), ("last", "done")]
    assert [(row["step"], row["end"]) for row in ends] == expected
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["contender"] for row in rows] == ["first", "cut", "fails", "last"]  # what was written before the end
    assert {row["settings"]["step"] for row in rows} == {"first", "cut", "fails", "last"}

    plan[1:3] = [step("cut", ""), step("fails", ""), step("new", "")]
    assert gpu.main(["--folder", str(tmp_path)]) == 0
    ends = [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()][4:]
    assert ends == ["new", "cut", "fails"]  # what was never tried comes first
    assert "| first | 2.5 |" in (tmp_path / "tables.md").read_text()


def test_no_step_begins_that_could_end_too_late(plan, tmp_path, capfd):
    plan[:] = [step("long", "", limit=600), step("short", "", limit=2)]
    gpu.main(["--folder", str(tmp_path), "--minutes", "5"])
    ends = [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert ends == ["short"]


def test_the_rehearsal_has_every_kind_of_step_that_a_gpu_has():
    def kinds(sizes):
        return {
            (step.name.split("/")[0], step.name.split("/")[-1]) for step in steps(sizes) if "profile" not in step.name
        }

    assert kinds(REHEARSAL) == kinds(FULL)
    for sizes in (REHEARSAL, FULL):
        names = [step.name for step in steps(sizes)]
        assert len(names) == len(set(names))
        asked = {name.split("/")[-1] for name in names if name.startswith("pretraining/")}
        assert asked == {contender.name for contender in CONTENDERS}
        assert all((model, sizes.device) in SHAPES for model in sizes.models)


def test_flops_of_a_token_are_those_that_the_runs_log():
    config = SHAPES["tiny", "cpu"].config
    counted, T = TokenFlops.of(LlamaForCausalLM(LlamaConfig(**config))), 128
    pairs = T * (T + 1) / 2
    assert token_flops(config, T) == pytest.approx(counted.per_token + counted.per_pair * pairs / T)


def test_tables_have_a_line_a_contender_and_leave_gaps(tmp_path):
    path = tmp_path / "rows.jsonl"
    append(path, "b", "ours", "m", {"speed": (1234.5, "x/s"), "loss": (0.12345, "")}, seq_len=8)
    append(path, "b", "other", "m", {"speed": (7, "x/s")}, seq_len=8)
    append(path, "b", "ours", "m", {"speed": (1, "x/s")}, seq_len=16)
    first, second = tables(map(json.loads, path.read_text().splitlines())).strip().split("\n\n### ")
    lines = ["### b: m, seq_len 8", "", "| | speed (x/s) | loss |", "| --- | --- | --- |"]
    assert first.splitlines() == [*lines, "| ours | 1,234 | 0.1235 |", "| other | 7 |  |"]
    assert second.splitlines()[0] == "b: m, seq_len 16"


def test_only_what_a_machine_lacks_is_carried(tmp_path):
    path = tmp_path / "image.txt"
    path.write_text("# a machine\npython==3.12\ntorch==2.9\nTransformers==5.17.0\npeft\n")
    image = read_image(path)
    assert image["transformers"] == Version("5.17.0") and image["peft"] is None

    def needed(line):
        return lacking(Requirement(line), image, "3.12")

    assert needed("transformers>=5.23,<5.24") and not needed("transformers>=5")
    assert not needed("peft>=99") and needed("jsonargparse[signatures]>=4")
    assert not needed("torch>=2.11")  # it is the machine's own, always
    assert not needed("tomli>=2; python_version < '3.11'") and not needed("pywin32; sys_platform == 'win32'")
