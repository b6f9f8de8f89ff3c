"""Environment variables come over YAML files and under flags."""

from llm_lightning.settings.environment import with_environment


def test_order():
    environment = {
        "LLM_LIGHTNING__MODEL__OPTIMIZER__LR": "1",
        "LLM_LIGHTNING__MODEL": "CausalPretraining",
        "LLM_LIGHTNING_CACHE": "/tmp",
        "HOME": "/",
    }
    args = ["fit", "--config", "a.yaml", "--config=b.yaml", "--model.optimizer.lr=2"]
    assert with_environment(args, environment) == [
        "fit", "--config", "a.yaml", "--config=b.yaml",
        "--model=CausalPretraining", "--model.optimizer.lr=1", "--model.optimizer.lr=2",
    ]  # fmt: skip
    assert with_environment(["fit"], environment)[1] == "--model=CausalPretraining"
