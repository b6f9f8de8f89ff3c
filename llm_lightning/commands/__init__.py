"""The commands beside those of a trainer, one a file."""
