"""The filters as a configuration names them."""

import pytest
from jsonargparse import ArgumentParser

from datamodules.synthetic.filters import Filter, Reward, Threshold
from tests.datamodules.synthetic.records import answers, funnel_of, ids, needs_extra

ALL = """
filters:
- datamodules.synthetic.filters.Format
- class_path: datamodules.synthetic.filters.Language
  init_args: {languages: [en, es]}
- class_path: datamodules.synthetic.filters.Length
  init_args: {threshold: {min: 3, max: 400}, of: text}
- datamodules.synthetic.filters.ExactDuplicates
- class_path: datamodules.synthetic.filters.NearDuplicates
  init_args: {threshold: {max: 0.99, by: quantile}}
- datamodules.synthetic.filters.SeedSimilarity
- datamodules.synthetic.filters.Decontamination
- datamodules.synthetic.filters.PersonalData
- datamodules.synthetic.filters.PerplexityBand
- class_path: datamodules.synthetic.filters.Judge
  init_args: {threshold: {min: 7}}
"""
REWARD = """
filters:
- class_path: datamodules.synthetic.filters.Reward
  init_args:
    scorer: {class_path: llm_lightning.rewards.Pattern, init_args: {pattern: "[0-9]"}}
    threshold: {min: 1}
"""


def parsed(text: str) -> list[Filter]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--filters", type=list[Filter])
    return parser.instantiate(parser.parse_string(text)).filters


@needs_extra
def test_all_of_them():
    filters = parsed(ALL)
    assert [type(each).__name__ for each in filters] == [
        line.split(".")[-1] for line in ALL.splitlines() if line.startswith("- ")
    ]
    assert filters[2].threshold == Threshold(3, 400) and filters[2].name == "text_words"
    assert filters[4].threshold == Threshold(max=0.99, by="quantile") and filters[5].threshold == Threshold(max=0.7)


def test_a_reward_of_the_reinforcement_learning(tmp_path):
    filters = parsed(REWARD)
    assert isinstance(filters[0], Reward)
    assert ids(funnel_of(tmp_path, filters, answers("four", "It is 4.")).kept()) == ["1"]


@pytest.mark.parametrize("name", ["threshold", "languages"])
def test_a_setting_that_there_is_not(name):
    with pytest.raises(Exception, match=name):
        parsed(f"filters: [{{class_path: datamodules.synthetic.filters.Format, init_args: {{{name}: 1}}}}]")
