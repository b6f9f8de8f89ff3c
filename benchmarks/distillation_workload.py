"""What every contender of `benchmarks/distillation_speed.py` learns from: a student, a teacher and conversations."""

from dataclasses import dataclass

from benchmarks.sft_workload import SFTJob


@dataclass
class DistillationJob(SFTJob):
    """One pass over the records, as the child process reads it from a JSON file.

    Args:
        teacher: a model folder with the student's tokenizer.
        cached: whether ours has what the teacher finds likely from the disk.
        writes: tokens that the student writes to each prompt, in the place of the records' replies; 0: it reads those.
    """

    teacher: str = ""
    cached: bool = False
    writes: int = 0
