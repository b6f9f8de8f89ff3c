"""Checkpoints: written atomically, read without running code, and checked for damage."""
