"""A run on Ray Train: which workers are asked for, what each of them runs, and what ends it."""
