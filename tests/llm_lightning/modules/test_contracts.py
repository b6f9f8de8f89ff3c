"""Every module keeps the contracts of the callbacks: what their signatures are mypy sees, and here what they hold.

`[tool.mypy]` names this file, so that the functions below are checked as the packages are.
"""

from pathlib import Path

import pytest
from typing_extensions import get_protocol_members

from callbacks import contract
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import (
    PPO,
    CausalPretraining,
    Distillation,
    MaskedPretraining,
    PreferenceOptimization,
    RewardModeling,
    SupervisedFinetuning,
)
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.metrics.rewards import Reliability
from llm_lightning.strategies import FSDP2Strategy

OF_ALL = (
    contract.HoldsNetwork,
    contract.SavesModel,
    contract.MergesAdapter,
    contract.HasTokenizer,
    contract.CountsTokens,
    contract.NamesMonitor,
    contract.EvaluatesTasks,
    contract.ComparesEvaluations,
    contract.TabulatesEvaluations,
)


def holds_network(module: LanguageModule) -> contract.HoldsNetwork:
    return module


def saves_model(module: LanguageModule) -> contract.SavesModel:
    return module


def merges_adapter(module: LanguageModule) -> contract.MergesAdapter:
    return module


def has_tokenizer(module: LanguageModule) -> contract.HasTokenizer:
    return module


def counts_tokens(module: LanguageModule) -> contract.CountsTokens:
    return module


def names_monitor(module: LanguageModule) -> contract.NamesMonitor:
    return module


def evaluates_tasks(module: LanguageModule) -> contract.EvaluatesTasks:
    return module


def tabulates_evaluations(module: LanguageModule) -> contract.TabulatesEvaluations:
    return module


def compares_evaluations(module: LanguageModule) -> contract.ComparesEvaluations:
    return module


def keeps_shards(strategy: FSDP2Strategy) -> contract.KeepsShards:
    return strategy


def keeps_samples(module: PPO) -> contract.KeepsSamples:
    return module


def measures_reliability(module: RewardModeling) -> contract.MeasuresReliability:
    return module


def resumes_predictions(module: RewardModeling) -> contract.ResumesPredictions:
    return module


def has_bins(bins: Reliability) -> contract.ReliabilityBins:
    return bins


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (CausalPretraining, ()),
        (MaskedPretraining, ()),
        (SupervisedFinetuning, ()),
        (PreferenceOptimization, ()),
        (lambda backbone: Distillation(backbone, teacher=backbone), ()),
        (RewardModeling, (contract.MeasuresReliability, contract.ResumesPredictions)),
        (lambda backbone: PPO(backbone, rewards={}), (contract.KeepsSamples,)),
    ],
)
def test_a_module_has_what_the_callbacks_ask_of_it(make, more):
    module = make(Backbone(path=str(Path("some") / "model")))
    for each in (*OF_ALL, *more):
        assert contract.offered(module, each) is module, get_protocol_members(each)
    optional = {contract.KeepsSamples, contract.MeasuresReliability, contract.ResumesPredictions}
    assert {each for each in optional if contract.offered(module, each) is not None} == set(more)
