"""Generators: each makes new records of real ones."""

from datamodules.synthetic.generators.answers import Answers
from datamodules.synthetic.generators.back_translation import BackTranslation
from datamodules.synthetic.generators.base import RecordGenerator
from datamodules.synthetic.generators.class_balance import ClassBalance
from datamodules.synthetic.generators.constitutional_revision import Constitution, ConstitutionalRevision
from datamodules.synthetic.generators.paraphrase import Paraphrase
from datamodules.synthetic.generators.preference_pairs import PreferencePairs
from datamodules.synthetic.generators.rationales import Rationales
from datamodules.synthetic.generators.self_instruct import SelfInstruct

__all__ = [
    "Answers",
    "BackTranslation",
    "ClassBalance",
    "Constitution",
    "ConstitutionalRevision",
    "Paraphrase",
    "PreferencePairs",
    "Rationales",
    "RecordGenerator",
    "SelfInstruct",
]
