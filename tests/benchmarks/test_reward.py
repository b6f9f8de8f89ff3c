import json
from dataclasses import replace

import pytest

from benchmarks.pair_benchmark import differences
from benchmarks.reward import CONTENDERS, our_command
from benchmarks.reward_workload import REWARD_QUICK, RewardJob, pair_of, prepare
from benchmarks.runner import OURS, measure
from benchmarks.sft_workload import write_pairs
from benchmarks.tally import PairTally

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE = replace(
    REWARD_QUICK, config=REWARD_QUICK.config | TINY | {"intermediate_size": 64, "vocab_size": 512}, seq_len=128
)


def job(**changes):
    plain = RewardJob(
        folder="model", records="records.jsonl", scratch="run", result="result.json", rows=1, seq_len=128, batch_size=2,
        warmup=1, precision="32-true", device="cpu",
    )  # fmt: skip
    return replace(plain, **changes)


def record(prompt, chosen, rejected):
    return {
        name: f"\n\nHuman: {prompt}\n\nAssistant: {text}" for name, text in (("chosen", chosen), ("rejected", rejected))
    }


def test_a_record_becomes_a_prompt_and_two_responses():
    pair = pair_of(record("What: is\n\nthis?", "A cat.\n\nOr two.", "A dog."))
    assert pair == {
        "prompt": [{"role": "user", "content": "What: is\n\nthis?"}],
        "chosen": [{"role": "assistant", "content": "A cat.\n\nOr two."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    }


@pytest.mark.slow
def test_ours_learns_every_pair_once(tmp_path):
    data = tmp_path / "data.jsonl"
    records = [record(f"What is {i} + {i}?", f"It is {2 * i}.", "No idea.") for i in range(40)]
    odd = [record("a", "", "b"), record("a", "b " * 200, "c")]
    data.write_text("".join(json.dumps(r) + "\n" for r in records + odd))
    prepared = prepare(tmp_path, data, SHAPE)
    assert prepared.num_left_out == 2 and len(prepared.pairs) == 40
    assert all(once < twice for once, twice in zip(prepared.lengths, prepared.written_out, strict=True))
    write_pairs(tmp_path / "records.jsonl", prepared.pairs)
    contender = next(c for c in CONTENDERS if c.name == OURS)
    figures = measure(contender, job(folder=str(prepared.folder), records=str(tmp_path / "records.jsonl")), 1)
    assert figures["pairs"] == pytest.approx(40, abs=2)  # a last row that is not full is left out
    assert figures["loss"] == pytest.approx(0.693, abs=0.1)


def test_our_command_shares_prompts_but_where_it_is_told():
    assert "--data.share_prompts=true" in our_command(job(), None)
    assert "--data.share_prompts=false" in our_command(job(share_prompts=False), None)


def test_a_contender_that_did_other_work_is_named():
    figures = {OURS: [{"pairs": 100}], "trl": [{"pairs": 99}], "trl-tuned": [{"pairs": 80}]}
    (line,) = differences(figures)
    assert line.startswith("trl-tuned") and "80" in line


def test_the_tally_weighs_a_step_by_its_pairs():
    import torch

    tally = PairTally()
    tally.add(7, torch.tensor(9.0), timed=False)
    tally.add(1, torch.tensor(1.0), timed=True)
    tally.add(3, torch.tensor(2.0), timed=True)
    assert tally.as_dict() == {"pairs": 4, "loss": 7 / 4, "pairs_in_all": 11}
