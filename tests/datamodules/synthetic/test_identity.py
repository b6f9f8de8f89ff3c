"""Objects of the configuration by what they were made from."""

import json

import torch

from datamodules.synthetic.filters import Length, Threshold
from datamodules.synthetic.generators import BackTranslation, Rationales
from datamodules.synthetic.identity import settings_of
from llm_lightning.rewards import FinalAnswer, RewardModel


def test_settings_of_all_levels_are_read():
    found = settings_of(BackTranslation(pivot="French", count=3))
    assert found["class"].endswith("BackTranslation")
    assert (found["pivot"], found["count"], found["seed"], found["temperature"]) == ("French", 3, 0, 0.8)
    nested = settings_of([Rationales(FinalAnswer("right")), Length(Threshold(min=2))])
    assert nested[0]["correct"]["column"] == "right" and nested[1]["threshold"]["min"] == 2
    json.dumps(nested)


def test_what_an_object_learned_in_use_does_not_count():
    model = RewardModel("folder", device="cpu")
    before = settings_of(model)
    vars(model)["tokenizer"] = torch.nn.Linear(2, 2)  # as a cached property leaves it
    assert settings_of(model) == before and before["path"] == "folder" and before["device"] == "cpu"
