"""Submission to a SLURM cluster, and checks of how a run's processes were started."""
