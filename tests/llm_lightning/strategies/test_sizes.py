"""Sizes that do not fit the devices are said in words."""

import pytest
from lightning.pytorch import Trainer

from llm_lightning.errors import UserError
from llm_lightning.strategies import FSDP2Strategy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"tensor_parallel_size": 2, "data_parallel_size": 2},
            "tensor_parallel_size=2 and data_parallel_size=2 do not",
        ),
        ({"replicas": 3}, "replicas=3 does not divide the 2 ranks"),
        ({"replicas": 2, "tensor_parallel_size": 2}, "replicas=2 does not divide the 1 ranks"),
        ({"replicas": 0}, "replicas=0 does not divide"),
    ],
)
def test_they_are_refused_before_ranks_meet(tmp_path, settings, words):
    strategy = FSDP2Strategy(**settings)
    Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=words):
        strategy.setup_environment()
