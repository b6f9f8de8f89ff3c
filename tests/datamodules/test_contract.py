"""What DataModules promise to modules, on real batches: the keys of each kind of batch, their types, and the rest."""

import json
from typing import get_args, get_type_hints

import pytest
import torch

from datamodules import (
    InstructionDataModule,
    PreferenceDataModule,
    PromptDataModule,
    SyntheticDataModule,
    TextDataModule,
    contract,
)
from tests.datamodules.chat_tokenizers import chat_tokenizer

FLOATS = ("margins", "chosen_scores", "rejected_scores")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer("smollm2").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def build(tmp_path, tokenizer):
    def ready(kind, records, stage="fit", **options):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        options = {"tokenizer": tokenizer, "batch_size": 2, "val_share": 0.2} | options
        data = kind(path=str(path), cache_dir=str(tmp_path / "cache"), **options)
        data.check()
        data.prepare_data()
        data.setup(stage)
        return data

    return ready


PAIRS = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(20)]
KINDS = [
    (TextDataModule, [{"text": f"Text {i}."} for i in range(20)], contract.PackedData, contract.PackedBatch),
    (InstructionDataModule, [{"question": f"{i}?", "answer": "Yes."} for i in range(20)], contract.PackedData,
     contract.PackedBatch),
    (PreferenceDataModule, PAIRS, contract.PairData, contract.PairBatch),
    (PromptDataModule, [{"prompt": f"What is {i}?", "answer": i} for i in range(20)], contract.PromptData,
     contract.PromptBatch),
]  # fmt: skip


def check_batch(batch, kind) -> None:
    hints = get_type_hints(kind)
    assert batch.keys() == hints.keys()
    for name, value in batch.items():
        if hints[name] is torch.Tensor:
            wanted = torch.float32 if name in FLOATS else torch.bool if name == "ties" else torch.int64
            assert value.dtype == wanted, name
        else:
            assert isinstance(value, list | dict), name


@pytest.mark.parametrize(("kind", "records", "protocol", "batch"), KINDS)
def test_a_datamodule_keeps_what_the_contract_says(build, kind, records, protocol, batch):
    data = build(kind, records)
    assert isinstance(data, protocol)
    assert data.batch_kind in get_args(contract.BatchKind)
    assert list(data.preview(1)) and data.describe()["path"] == data.path
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        check_batch(next(iter(loader)), batch)


@pytest.mark.parametrize(("kind", "records", "protocol", "batch"), [KINDS[0], KINDS[1], KINDS[3]])
def test_what_predict_goes_on_from(build, kind, records, protocol, batch):
    found = next(iter(build(kind, records).predict_dataloader()))
    check_batch(found, contract.PromptBatch if kind is PromptDataModule else contract.ContinuationBatch)
    assert found["prompt_ids"].shape == found["attention_mask"].shape


def test_shapes_of_packed_rows_and_pairs(build):
    rows = next(iter(build(*KINDS[0][:2], seq_len=32).train_dataloader()))
    assert all(value.shape == (2, 32) for value in rows.values())
    pairs = next(iter(build(*KINDS[2][:2], seq_len=256).train_dataloader()))
    assert pairs["input_ids"].shape == pairs["position_ids"].shape == (2, 256)
    assert pairs["spans"].shape[1] == 5
    others = ("input_ids", "position_ids", "spans", "target_positions", "targets", "num_targets")
    assert {tuple(value.shape) for name, value in pairs.items() if name not in others} == {(len(pairs["ties"]),)}
    assert len(pairs["num_targets"]) == 2 * len(pairs["ties"])
    assert len(pairs["targets"]) == len(pairs["target_positions"]) == pairs["num_targets"].sum()
    for row, start, end, prompt_start, prompt_end in pairs["spans"].tolist():
        assert pairs["position_ids"][row, start] == prompt_end - prompt_start
        assert (pairs["position_ids"][row, start:end].diff() == 1).all()


def test_conversations_to_score_have_a_key(build, tmp_path):
    (tmp_path / "talks.jsonl").write_text(
        json.dumps({"question": "1?", "answer": "Yes."}) + "\n" + json.dumps({"question": "2?", "answer": "x" * 999})
    )
    data = build(PreferenceDataModule, PAIRS, predict_path=str(tmp_path / "talks.jsonl"), seq_len=256)
    check_batch(next(iter(data.reference_dataloader())), contract.PairBatch)
    scored = data.predict_dataloader()
    assert isinstance(scored, contract.Scored) and scored.key
    fit, unfit = list(scored)
    check_batch(fit, contract.ConversationBatch)
    check_batch(unfit, contract.UnfitBatch)


def test_data_around_data_gives_what_that_gives(build):
    pairs = build(PreferenceDataModule, PAIRS)
    assert SyntheticDataModule(pairs, {}).batch_kind == "preference pairs"
