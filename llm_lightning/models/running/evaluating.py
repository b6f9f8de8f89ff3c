"""A network as it is asked: without dropout, and eager."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode inside of this context, and eager: a compiled one would be compiled anew for every
    shape.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train(was_training)
