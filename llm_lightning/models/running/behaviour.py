"""What a network can be asked for, found out by trying it: see `examination/examination.py`."""

from dataclasses import dataclass
from typing import Any

NAME = "llm_lightning_behaviour"


@dataclass(frozen=True)
class Behaviour:
    """How a network is run so that its documents do not see each other and its logits are its own.

    Args:
        attention: the attention that runs.
        packs: documents share a row; False: each one takes a row of its own in the forward pass.
        own_logits: logits come from the network's own forward pass, of all tokens at once; False: from its hidden
            states and its head, chunk by chunk.
        reason: why not the fast way, in words; None where it is.
        two_way: a token sees those after it too; its hidden state is then what the output layer reads.
        unruled: a weight of which the architecture's rules for a start from scratch say nothing, so that only its
            constructor does; None: they name all, and the network can be built empty and loaded sharded.
    """

    attention: str
    packs: bool = True
    own_logits: bool = False
    reason: str | None = None
    two_way: bool = False
    unruled: str | None = None

    def attach(self, network: Any) -> None:
        """Remember it at a network and at the decoder inside, which a critic takes out."""
        for module in {id(x): x for x in (network, network.get_decoder())}.values():
            object.__setattr__(module, NAME, self)

    def in_words(self, kind: str) -> str | None:
        """What it costs, as a line to print; None where it costs nothing."""
        costs = []
        if not self.packs:
            costs.append(
                "packed documents would see each other, so that each takes a row of its own in the network: documents "
                "of unlike length cost padding"
            )
        if self.own_logits:
            costs.append("its logits are more than its head makes of its states, so that all are held at once")
        if not costs:
            return None
        return f"{kind} with attention {self.attention}: {'; '.join(costs)} (docs/architectures.md)."


def behaviour_of(network: Any) -> Behaviour:
    """Of a network that was tried out, as every `Backbone` builds it.

    Raises:
        TypeError: it was not; see `examined`.
    """
    known = getattr(network, NAME, None)
    if known is None:
        raise TypeError(f"How {type(network).__name__} is to be run is not known: pass it to `examined` first.")
    return known
