"""Synthetic augmentation: generate records, filter them, and mix them with the real ones."""
