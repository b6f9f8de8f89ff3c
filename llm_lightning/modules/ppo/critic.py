"""The critic of PPO, whole or sharded over all ranks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.completions import Critic
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.sharding import Sharding
from llm_lightning.modules.decay import decay_groups
from llm_lightning.modules.ppo.settings import CriticSettings


class NetworkBuilder(Protocol):
    """Builds networks as the strategy wants them; a `LanguageModule` does."""

    @property
    def sharding(self) -> Sharding | None:
        """How they are sharded; None: whole on each rank."""
        ...

    def build_network(self, backbone: Backbone) -> Any:
        """A network; without weights where it is to be sharded."""
        ...

    def shard_and_load(self, backbone: Backbone, network: Any, names: Mapping[str, str] | None = None) -> None:
        """Shard a network from `build_network` and load its weights."""
        ...


def build_critic(builder: NetworkBuilder, settings: CriticSettings, backbone: Backbone, policy: Any) -> Critic:
    """What the settings ask for.

    Args:
        builder: builds a network of its own.
        settings: of the critic.
        backbone: of the policy.
        policy: its network, with or without an adapter.
    """
    own = settings.backbone(backbone)
    network: Any = base_model(policy) if own is None else builder.build_network(own)
    critic = Critic(network.config.get_text_config(decoder=True).hidden_size, None if own is None else network)
    if builder.sharding is not None:
        if own is not None:
            names = {id(p): name for name, p in network.named_parameters()}
            decoder = network.get_decoder()
            builder.shard_and_load(own, decoder, {name: names[id(p)] for name, p in decoder.named_parameters()})
        replace(builder.sharding, dtype=None).apply(critic)  # values are added up over a completion
    return critic


def critic_groups(critic: Critic, settings: CriticSettings) -> list[dict[str, Any]]:
    """The critic's parameters for the optimizer; its head, which starts from zero, has a rate of its own."""
    groups = [] if critic.network is None else decay_groups(critic.network)
    return [*groups, {"params": list(critic.head.parameters()), "lr": settings.head_lr, "weight_decay": 0.0}]
