"""Train, tune, align and compress language models on PyTorch Lightning."""

__version__ = "0.1.0"
