"""LightningModules, one objective a file."""

from llm_lightning.modules.distillation.distillation import Distillation
from llm_lightning.modules.ppo.ppo import PPO
from llm_lightning.modules.prediction.masked import MaskedPretraining
from llm_lightning.modules.prediction.spans import SpanPretraining
from llm_lightning.modules.preference.optimization import PreferenceOptimization
from llm_lightning.modules.pretraining import CausalPretraining
from llm_lightning.modules.reward import RewardModeling
from llm_lightning.modules.sft import SupervisedFinetuning

__all__ = [
    "PPO",
    "CausalPretraining",
    "Distillation",
    "MaskedPretraining",
    "PreferenceOptimization",
    "RewardModeling",
    "SpanPretraining",
    "SupervisedFinetuning",
]
