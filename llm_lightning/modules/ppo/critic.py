"""The critic of PPO, whole or in parts on all ranks."""

from dataclasses import replace
from typing import Any

from llm_lightning.models.answers import Critic
from llm_lightning.models.heads import base_model


def build_critic(module: Any) -> Critic:
    """What `module.critic_settings` asks for, beside the policy of `module`, a `PPO`."""
    backbone = module.critic_settings.backbone(module.backbone)
    network: Any = base_model(module.model) if backbone is None else module.build_network(backbone)
    critic = Critic(network.config.get_text_config(decoder=True).hidden_size, None if backbone is None else network)
    if module.sharding is not None:
        if backbone is not None:
            names = {id(p): name for name, p in network.named_parameters()}
            decoder = network.get_decoder()
            module.fill(backbone, decoder, {name: names[id(p)] for name, p in decoder.named_parameters()})
        replace(module.sharding, dtype=None).apply(critic)  # values are added up over an answer
    return critic
