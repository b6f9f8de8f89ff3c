"""Mutated records of every shape through the four DataModules; `python -m tests.datamodules.fuzz` goes on and on."""

import pytest

from tests.datamodules.fuzz.cases import KINDS, Case, check
from tests.datamodules.fuzz.tokenizers import save_tokenizer

NUM_SEEDS = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, 10))
def test_records_are_read_or_refused_in_words_and_all_are_accounted_for(first, tokenizer, tmp_path, caplog):
    for seed in range(first, first + 10):
        (folder := tmp_path / str(seed)).mkdir()
        case = Case.of(seed)
        try:
            check(case, tokenizer, folder)
        except Exception as error:
            raise AssertionError(f"seed {seed} ({case}): {error!r}") from error
        "".join(caplog.messages).encode()  # half a character in a message would end whoever writes it to a file


def test_the_cases_are_of_every_kind_and_some_are_read_and_some_refused(tokenizer, tmp_path):
    cases = {seed: Case.of(seed) for seed in range(NUM_SEEDS)}
    assert {case.kind for case in cases.values()} == set(KINDS)
    results = set()
    for seed in range(NUM_SEEDS):
        if len(results) < 2:
            (folder := tmp_path / str(seed)).mkdir()
            results.add(check(cases[seed], tokenizer, folder))
    assert results == {"read", "refused"}
