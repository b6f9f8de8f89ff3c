"""Which attention a network runs.

transformers sets it in public for a whole network (`set_attn_implementation`), which goes through the configs of all
parts and does not know a network that FSDP wrapped; it has no public way to read it, or to set one config's alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def attention_of(network: Any) -> str:
    """The name that the network's config has for it."""
    return network.config._attn_implementation


@contextmanager
def with_attention(config: Any, name: str | None) -> Iterator[None]:
    """The config names this attention inside of the context, those of its parts what they named before.

    Args:
        config: of a network, or of its decoder.
        name: registered with transformers' attention interface; None for none.
    """
    former = config._attn_implementation_internal
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = former


def leave_attention_to_transformers(config: Any) -> None:
    """The config, of a network or of its decoder, names none, so that a network built by it gets transformers' own."""
    config._attn_implementation_internal = None
