"""Whether a network can write into slots, found out on a miniature as in `models/examination.py`."""

from typing import Any

import torch

from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.examination.examination import Examination, is_close
from llm_lightning.models.examination.on_the_side import on_the_side
from llm_lightning.models.heads import head_scaling, output_head
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.models.tasks import LANGUAGE
from llm_lightning.rollouts.slots import Slots, rollout_mode

NAME = "llm_lightning_fits_slots"


def fits_slots(network: Any) -> bool:
    """Whether prompts and then tokens, through slots, get the logits of the texts read as a whole."""
    if not hasattr(network, NAME):
        object.__setattr__(network, NAME, _try(network))
    return getattr(network, NAME)


def _try(network: Any) -> bool:
    way = behaviour_of(network)
    if way.attention != ATTENTION or not way.packs or way.own_logits:
        return False
    with on_the_side():
        examination = Examination(network.config, LANGUAGE)
        small = examination.network(way)
        texts = [text[0] for text in examination.texts]
        try:
            with rollout_mode(small):
                slots = Slots(small)
                list(slots.admit([text[:-4] for text in texts], 1, sum(map(len, texts))))
                slots.append(torch.stack([text[-4] for text in texts]))
                # Some with a draft, a wrong one.
                counts = torch.tensor([1 + number % 2 for number in range(len(texts))])
                slots.extend(torch.cat([text[[-3, -1][:n]] for text, n in zip(texts, counts, strict=True)]), counts)
                slots.take_back(counts - 1)
                slots.append(torch.stack([text[-2] for text in texts]))
                states = slots.append(torch.stack([text[-1] for text in texts]))
        except Exception:
            return False
        found = head_scaling(small)(output_head(small)(states))
    return all(is_close(a, whole[-1]) for a, whole in zip(found, examination.alone, strict=True))
