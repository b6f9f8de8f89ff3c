import numpy as np
import torch

from datamodules.serving.collate import PackedCollator, Piece, PromptCollator

ROWS = [[Piece(np.array([5, 6, 7])), Piece(np.array([8, 9]))], [Piece(np.array([1, 2, 3, 4, 5, 6]))], []]


def test_documents_are_apart_and_padding_is_not_trained():
    batch = PackedCollator(seq_len=6, pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 5, 6], [0] * 6]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100], [-100, 2, 3, 4, 5, 6], [-100] * 6]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_without_document_mask_a_row_is_one_document():
    batch = PackedCollator(seq_len=6, pad_token_id=0, document_mask=False)(ROWS)
    assert batch["labels"].tolist()[0] == [-100, 6, 7, 8, 9, -100]
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 3, 4, 0]


def test_only_trained_tokens_are_labels():
    ids = np.array([5, 6, 7, 8], np.uint16)
    pieces = [Piece(ids, np.array([False, False, True, True])), Piece(ids[:2], np.array([False, True]))]
    batch = PackedCollator(seq_len=7, pad_token_id=0)([pieces])
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, -100, 6, -100]]
    batch = PackedCollator(seq_len=7, pad_token_id=0, document_mask=False)([pieces])
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, -100, 6, -100]]


def test_prompts_are_padded_on_the_left():
    batch = PromptCollator(pad_token_id=9)([np.array([1, 2, 3]), np.array([4])])
    assert batch["prompt_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
