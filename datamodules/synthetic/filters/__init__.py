"""What is good enough to train on; each filter gives every record a number and keeps those within a threshold."""

from datamodules.synthetic.filters.decontamination import Decontamination
from datamodules.synthetic.filters.exact_duplicates import ExactDuplicates
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold
from datamodules.synthetic.filters.format import Format
from datamodules.synthetic.filters.judge import Judge
from datamodules.synthetic.filters.language import Language
from datamodules.synthetic.filters.length import Length
from datamodules.synthetic.filters.near_duplicates import NearDuplicates
from datamodules.synthetic.filters.perplexity import PerplexityBand
from datamodules.synthetic.filters.pii import PersonalData
from datamodules.synthetic.filters.reward import Reward
from datamodules.synthetic.filters.seed_similarity import SeedSimilarity

__all__ = [
    "Context",
    "Decontamination",
    "ExactDuplicates",
    "Filter",
    "Format",
    "Judge",
    "Language",
    "Length",
    "NearDuplicates",
    "PerplexityBand",
    "PersonalData",
    "Reward",
    "Scores",
    "SeedSimilarity",
    "Threshold",
]
