"""What every contender of the preference benchmark is told: a reward job, and where the reference comes from."""

from dataclasses import dataclass

from benchmarks.reward_workload import RewardJob


@dataclass
class PreferenceJob(RewardJob):
    """As `RewardJob`, of a language model.

    Args:
        kto: by KTO, to which a pair is two answers; else by DPO.
        cached: the reference's log-probabilities are computed before training.
        lora: a LoRA of rank 16 on all projections trains instead of the network; its reference is the network alone.
    """

    cached: bool = False
    lora: bool = False
    kto: bool = False
