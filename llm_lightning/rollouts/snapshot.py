"""A policy to write with while the original is trained."""

import copy
from typing import Any

import torch


@torch.no_grad()
def weights_as_they_are(model: Any) -> Any:
    """The same network with copies of the weights that are trained; frozen ones are shared, so that of an adapted
    network the adapter alone is copied.
    """
    shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, shared)
