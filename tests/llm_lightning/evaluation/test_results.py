"""Evaluations' folders: what is read of them, and what is refused in which words."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from llm_lightning.errors import UserError
from llm_lightning.evaluation.results import (
    find_evaluations,
    newest_of_each_task,
    read_evaluation,
    read_items,
)
from tests.llm_lightning.evaluation.folders import change_results, write_evaluation

SCORES = np.array([1.0, 0, 1, 1])


@pytest.fixture
def folder(tmp_path):
    return write_evaluation(tmp_path / "evaluation" / "step=20", {"arc": SCORES}, step=20, tokens=512)


def test_what_was_written_is_read(folder):
    found = read_evaluation(folder)
    assert (found.step, found.tokens, found.command) == (20, 512, ["llm-lightning", "evaluate", "MODEL"])
    assert found.tasks["arc"]["scores"][0]["value"] == 0.75
    items = read_items(folder)["arc", "acc", "none"]
    assert items.values.tolist() == SCORES.tolist() and items.clusters is None
    assert items.hashes[0] == "arc-00000"


def test_items_that_share_a_source_are_known(tmp_path):
    folder = write_evaluation(tmp_path / "e", {"arc": SCORES}, clusters=["a", "a", "b", None])
    clusters = read_items(folder)["arc", "acc", "none"].clusters
    assert clusters[0] == clusters[1] and len(set(clusters.tolist())) == 3


def test_evaluations_are_found_in_the_order_of_their_steps(folder, tmp_path):
    for name in ("step=100", "best", "step=3"):
        shutil.copytree(folder, folder.parent / name)
    (folder.parent / "away").symlink_to(folder)
    (folder.parent / "empty").mkdir()
    found = find_evaluations(tmp_path)
    assert [each.name for each in found] == ["step=3", "step=20", "step=100", "best"]
    assert find_evaluations(folder) == [folder]
    assert find_evaluations(tmp_path / "nowhere") == []


def test_a_task_counts_where_it_was_asked_last(tmp_path):
    arc = {"arc": SCORES}
    early = read_evaluation(write_evaluation(tmp_path / "1", arc | {"gsm8k": SCORES}, step=10, created="2026-11-01"))
    late = read_evaluation(write_evaluation(tmp_path / "2", arc, step=20, created="2026-11-02"))
    assert newest_of_each_task([late, early]) == {"arc": late, "gsm8k": early}


def remove_value(content):
    del content["tasks"]["arc"]["scores"][0]["value"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), r"results.json: format is 2, and this version reads 1"),
        (lambda c: c.pop("tasks"), r"results.json: tasks is missing"),
        (lambda c: c.update(tasks=[]), r"tasks is a list, not dict"),
        (lambda c: c.update(step="ten"), r"step is a str, not int or null"),
        (lambda c: c["tasks"].update(arc=7), r"tasks.arc is a int, not the results of a task"),
        (lambda c: c["tasks"]["arc"].update(num_items=-1), r"tasks.arc.num_items is -1"),
        (lambda c: c["tasks"]["arc"].update(num_items=True), r"tasks.arc.num_items is a bool, not int"),
        (lambda c: c["tasks"]["arc"].update(first_prompt=None), r"tasks.arc.first_prompt is null, not str"),
        (remove_value, r"tasks.arc.scores.0.value is missing"),
        (lambda c: c["tasks"]["arc"].update(scores=["0.7"]), r"tasks.arc.scores.0 is a str, not a score"),
    ],
)
def test_what_is_wrong_in_results_is_named(folder, change, message):
    change_results(folder, change)
    with pytest.raises(UserError, match=message):
        read_evaluation(folder)


def test_a_number_that_may_be_unknown_may_be_missing(folder):
    def change(content):
        del content["tasks"]["arc"]["truncated"]
        content["tasks"]["arc"]["scores"][0]["low"] = None

    change_results(folder, change)
    assert read_evaluation(folder).tasks["arc"]["scores"][0]["low"] is None


def test_text_that_is_no_json(folder):
    for text in ("{", "[" * 100_000, "[1]"):
        (folder / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results.json"):
            read_evaluation(folder)


def test_links_are_not_followed(folder, tmp_path):
    for name, read in (("results.json", read_evaluation), ("items.parquet", read_items)):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(OSError, match="is a link"):
            read(folder)


def test_results_of_too_many_bytes(folder):
    with (folder / "results.json").open("ab") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(OSError, match="more than"):
        read_evaluation(folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("value", ["1", "0", "1", "1"], "the column value holds string, not float"),
        ("item", ["1", "2", "3", "4"], "the column item holds string, not int"),
        ("value", None, "the column value is missing"),
        ("value", [1.0, None, 1.0, 0.0], "the column value has a row without a value"),
        ("item_hash", ["x" * 500, "b", "c", "d"], "item_hash has one of more than 128 characters"),
    ],
)
def test_what_is_wrong_in_items_is_named(folder, column, values, message):
    path = folder / "items.parquet"
    table = parquet.read_table(path)
    place = table.schema.get_field_index(column)
    table = table.remove_column(place) if values is None else table.set_column(place, column, pa.array(values))
    parquet.write_table(table, path)
    with pytest.raises(UserError, match=message):
        read_items(folder)


def test_damaged_items(folder):
    path = folder / "items.parquet"
    for data in (b"", b"PAR1 nothing of the kind PAR1", path.read_bytes()[:-30]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            read_items(folder)


def test_more_rows_than_are_read(folder):
    table = pa.table({name: pa.nulls(6_000_000, pa.string()) for name in ("task", "item_hash")})
    parquet.write_table(table, folder / "items.parquet")
    with pytest.raises(UserError, match="6,000,000 rows"):
        read_items(folder)
