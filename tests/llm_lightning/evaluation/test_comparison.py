"""Two runs' evaluations side by side: which items pair, which test is made, and what it says."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy import stats

from llm_lightning.evaluation.comparison import BOOTSTRAP, CLUSTERED, MCNEMAR, MCNEMAR_CLUSTERS, compare
from llm_lightning.evaluation.results import read_evaluation
from llm_lightning.measuring.statistics import smallest_share
from tests.llm_lightning.evaluation.folders import write_evaluation

GENERATOR = np.random.default_rng(0)
FIRST = (GENERATOR.random(300) < 0.5).astype(float)
SECOND = np.where(GENERATOR.random(300) < 0.25, 1.0, FIRST)  # never worse


def evaluation(folder, tasks, **fields):
    return read_evaluation(write_evaluation(folder, tasks, **fields))


def test_shares_are_tested_by_mcnemar(tmp_path):
    one, two = evaluation(tmp_path / "1", {"arc": FIRST}), evaluation(tmp_path / "2", {"arc": SECOND})
    (score,) = compare([one], [two]).scores
    wins = int((SECOND > FIRST).sum())
    assert score.test == MCNEMAR and score.num_pairs == 300 and score.num_unpaired == 0
    assert (score.first, score.second) == (FIRST.mean(), SECOND.mean())
    assert score.difference.value == pytest.approx(SECOND.mean() - FIRST.mean())
    assert score.difference.p == pytest.approx(stats.binomtest(wins, wins).pvalue)
    assert score.difference.smallest == smallest_share(wins / 300, 300)
    assert score.verdict == "better"
    (turned,) = compare([two], [one]).scores
    assert turned.verdict == "worse" and turned.difference.value == -score.difference.value


def test_other_scores_and_shared_sources_are_bootstrapped(tmp_path):
    parts = {"f1": np.linspace(0, 1, 60)}
    one, two = evaluation(tmp_path / "1", parts), evaluation(tmp_path / "2", {"f1": parts["f1"] ** 0.5})
    (score,) = compare([one], [two]).scores
    assert score.test == BOOTSTRAP and score.verdict == "better" and score.difference.low > 0
    clusters = [f"passage {i // 10}" for i in range(300)]
    one = evaluation(tmp_path / "3", {"arc": FIRST}, clusters=clusters)
    two = evaluation(tmp_path / "4", {"arc": SECOND}, clusters=clusters)
    assert compare([one], [two]).scores[0].test == CLUSTERED


def test_where_no_item_differs_few_sources_show_little(tmp_path):
    clusters = [f"passage {i // 100}" for i in range(300)]
    one = evaluation(tmp_path / "1", {"arc": FIRST}, clusters=clusters)
    two = evaluation(tmp_path / "2", {"arc": FIRST}, clusters=clusters)
    (score,) = compare([one], [two]).scores
    assert score.test == MCNEMAR_CLUSTERS and score.difference.p == 1 and score.num_pairs == 300
    assert score.difference.smallest == 1.0 and score.difference.low < -0.3 and score.difference.high > 0.3


def test_only_the_metrics_that_are_asked_for_are_tested_and_corrected_for(tmp_path):
    one, two = (
        evaluation(tmp_path / "1", {"arc": FIRST, "other": FIRST}),
        evaluation(tmp_path / "2", {"arc": SECOND, "other": FIRST}),
    )
    (score,) = compare([one], [two], {("arc", "acc"), ("nowhere", "acc")}).scores
    assert score.task == "arc" and score.corrected_p == score.difference.p


def test_items_pair_by_their_content(tmp_path):
    one, two = (
        evaluation(tmp_path / "1", {"arc": FIRST}),
        evaluation(tmp_path / "2", {"arc": SECOND[:120], "boolq": FIRST}),
    )
    found = compare([one], [two])
    (score,) = found.scores
    assert (score.num_pairs, score.num_unpaired) == (120, 180)
    assert score.first == FIRST[:120].mean()
    other = write_evaluation(tmp_path / "3", {"none of these": FIRST})
    text = (other / "results.json").read_text().replace("none of these", "arc")
    (other / "results.json").write_text(text)
    found = compare([one], [read_evaluation(other)])
    assert found.scores == [] and found.unpaired_tasks == ["arc"]


def test_a_lower_score_may_be_better(tmp_path):
    one, two = evaluation(tmp_path / "1", {"ppl": FIRST}), evaluation(tmp_path / "2", {"ppl": SECOND})
    one.tasks["ppl"]["scores"][0]["higher_is_better"] = False
    assert compare([one], [two]).scores[0].verdict == "worse"


def test_of_perplexities_and_bits_per_byte_the_latter_are_tested(tmp_path):
    bits = np.linspace(1, 3, 100), np.linspace(1, 3, 100) - np.linspace(0, 0.02, 100)
    folders = [
        write_evaluation(tmp_path / str(i), {"text": each}, metric="bits_per_byte") for i, each in enumerate(bits)
    ]
    for folder in folders:
        table = parquet.read_table(folder / "items.parquet")
        rows = [row | {"metric": "byte_perplexity", "value": 2.0 ** row["value"]} for row in table.to_pylist()]
        both = pa.concat_tables([table, pa.Table.from_pylist(rows, table.schema)])
        parquet.write_table(both, folder / "items.parquet")
    one, two = map(read_evaluation, folders)
    for each in (one, two):
        own = each.tasks["text"]["scores"][0] | {"higher_is_better": False}
        each.tasks["text"]["scores"] = [own | {"metric": "byte_perplexity"}, own]
    (score,) = compare([one], [two]).scores
    assert score.metric == "bits_per_byte" and score.verdict == "better"
    for each in (one, two):
        del each.tasks["text"]["scores"][1]
    (score,) = compare([one], [two]).scores
    assert score.metric == "byte_perplexity"


def test_many_tasks_are_corrected_by_holm(tmp_path):
    # Nine discordant items of ten for one model, p = 0.0215, and tasks in which nothing differs.
    weak = np.concatenate([np.ones(10), np.zeros(100)])
    strong = np.concatenate([np.zeros(9), np.ones(2), np.zeros(99)])
    alone = compare([evaluation(tmp_path / "1", {"a": weak})], [evaluation(tmp_path / "2", {"a": strong})])
    assert alone.scores[0].verdict == "worse" and alone.scores[0].difference.p == pytest.approx(0.0215, abs=1e-4)
    tasks = {"a": weak, "b": weak, "c": weak}
    three = compare([evaluation(tmp_path / "3", tasks)], [evaluation(tmp_path / "4", {**tasks, "a": strong})])
    assert three.scores[0].corrected_p == pytest.approx(3 * three.scores[0].difference.p)
    assert {score.verdict for score in three.scores} == {"no difference shown"}


def test_scores_without_a_number_are_left_out_and_counted(tmp_path):
    scores = np.linspace(0, 1, 30)
    one, two = (
        evaluation(tmp_path / "1", {"f1": scores}),
        evaluation(tmp_path / "2", {"f1": np.where(scores > 0.9, np.nan, scores)}),
    )
    (score,) = compare([one], [two]).scores
    assert score.num_undefined == 3 and score.num_pairs == 27 and score.verdict == "no difference shown"


def test_settings_that_differ_are_told(tmp_path):
    one = evaluation(tmp_path / "1", {"arc": FIRST}, settings={"num_fewshot": 0, "seed": 1})
    two = evaluation(tmp_path / "2", {"arc": FIRST}, settings={"num_fewshot": 5, "seed": 1})
    assert compare([one], [two]).differing_settings == {"arc": [("num_fewshot", 0, 5)]}
    two.tasks["arc"]["num_fewshot"] = 5
    assert ("num_fewshot", None, 5) in compare([one], [two]).differing_settings["arc"]
