"""The preference benchmark: ours learns every pair once, with the reference that its contender names."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.preference import CONTENDERS, our_command
from benchmarks.preference_workload import PreferenceJob
from benchmarks.reward_workload import prepare
from benchmarks.runner import OURS, measure
from benchmarks.sft_workload import write_pairs
from tests.benchmarks.test_reward import SHAPE, job, record

PLAIN = PreferenceJob(**asdict(job()))


@pytest.mark.slow
def test_ours_learns_every_pair_once(tmp_path):
    data = tmp_path / "data.jsonl"
    records = [record(f"What is {i} + {i}?", f"It is {2 * i}.", "No idea.") for i in range(40)]
    data.write_text("".join(json.dumps(each) + "\n" for each in records))
    prepared = prepare(tmp_path, data, SHAPE, head="CausalLM")
    write_pairs(tmp_path / "records.jsonl", prepared.pairs)
    contender = next(each for each in CONTENDERS if each.name == OURS)
    places = {"folder": str(prepared.folder), "records": str(tmp_path / "records.jsonl")}
    figures = measure(contender, replace(PLAIN, **places), 1)
    assert figures["pairs"] == pytest.approx(40, abs=2) and figures["loss"] < 0.7


def test_contenders_differ_by_what_their_names_say():
    assert "--model.reference=live" in our_command(PLAIN, None)
    assert "--model.reference=cached" in our_command(replace(PLAIN, cached=True), None)
    assert any(part.startswith("--model.peft=") for part in our_command(replace(PLAIN, lora=True), None))
    assert "--model.objective.kind=kto" in our_command(replace(PLAIN, kto=True), None)
