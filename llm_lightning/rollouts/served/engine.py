"""A `RolloutEngine` that asks a server over HTTP."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning.models.heads import base_model
from llm_lightning.rollouts.contract import Completion
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.served.protocols import VLLM, Endpoint, ServerProtocol, TransformersServe
from llm_lightning.rollouts.served.weights import adapter_name
from llm_lightning_safety.files import remove

PROTOCOLS: dict[str, type[ServerProtocol]] = {"vllm": VLLM, "transformers": TransformersServe}


class ServedEngine:
    """Completions from a server that has the network, and gets the policy's adapter before each rollout.

    The server computes in another way than the trainer, so that the policy that wrote is not quite the one that is
    trained. The update weighs each token by how much likelier the trainer finds it (see `importance_weights`); for that
    the server has to tell how likely it found each one.

    A call that fails is made again; one that fails to the end ends the run, and the same command resumes it.

    Args:
        sampling: how tokens are drawn.
        eos_token_ids: tokens that end a completion.
        num_slots: not used: `concurrency` of the endpoint says how many completions are written at the same time.
        endpoint: the server: `datamodules.OpenAIEngine` with its `url`; `model_name` is that of the base.
        folder: where weights are written, named by their content, and the former ones removed. The server has to find
            it at the same path.
        protocol: `vllm`: token ids, log-probabilities and `/load_lora_adapter` as vLLM documents them. Start it with
            `--enable-lora`, a `--max-lora-rank` that suffices, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; at a
            temperature other than 1 with `--logprobs-mode processed_logprobs`, too. `transformers`: `transformers
            serve`, which reads whole networks only and tells texts alone, so that no token can be weighed.
    """

    is_inexact = True
    """See `RolloutEngine`."""

    def __init__(
        self,
        sampling: Sampling,
        eos_token_ids: Sequence[int],
        num_slots: int,
        endpoint: Endpoint,
        folder: str,
        protocol: Literal["vllm", "transformers"] = "vllm",
    ) -> None:
        self.sampling, self.eos_token_ids = sampling, eos_token_ids
        self.endpoint, self.folder, self.protocol = endpoint, Path(folder), protocol
        self._server: ServerProtocol | None = None
        self._served: str | None = None

    def check(self, tokenizer: Any) -> None:
        """Find a user's mistakes, and remember the policy's tokenizer; nothing is called."""
        self.endpoint.check()
        self._server = PROTOCOLS[self.protocol](self.sampling, self.eos_token_ids, tokenizer)

    def sample(self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]) -> list[Completion]:
        """See `RolloutEngine`; how exactly a key repeats a completion is up to the server.

        Raises:
            UserError: the policy has no adapter, or completions came to nothing.
        """
        return self.begin(model, prompts, keys)()

    def begin(
        self, model: Any, prompts: Sequence[Tensor], keys: Sequence[Sequence[Key]]
    ) -> Callable[[], list[Completion]]:
        """See `AsynchronousEngine`; the weights are handed over before it returns, and nothing else."""
        assert self._server is not None
        name = self._hand_over(model, self._server)
        folder = (self.folder / name).resolve()
        bodies = [
            self._server.body(name, folder, prompt, key)
            for prompt, own in zip(prompts, keys, strict=True)
            for key in own
        ]
        vocab_size = base_model(model).config.get_text_config(decoder=True).vocab_size
        read = partial(self._server.read, vocab_size=vocab_size)
        return partial(self._ask, bodies, read)

    def _ask(self, bodies: list[Any], read: Callable[..., Completion]) -> list[Completion]:
        found = dict(self.endpoint.call("completions", bodies, read))
        if len(found) < len(bodies):
            raise UserError(
                f"model.engine: {len(bodies) - len(found)} of {len(bodies)} completions by "
                f"{self.endpoint.settings().get('url')} came to nothing. Once the server is there again, the same "
                "command goes on from the last checkpoint."
            )
        return [found[place] for place in range(len(bodies))]

    def _hand_over(self, model: Any, server: ServerProtocol) -> str:
        """Let the server have the weights as they are now; the name that it knows them by."""
        name, ranks = adapter_name(model), EvaluationRanks()
        if name == self._served:
            return name
        folder = (self.folder / name).resolve()
        if ranks.rank == 0:
            if not folder.is_dir():
                server.write(model, folder)
            server.publish(self.endpoint, name, folder)
        ranks.wait()  # nobody asks for what is not there, and nobody needs the former one any more
        if ranks.rank == 0 and self._served is not None:
            server.withdraw(self.endpoint, self._served)
            remove(self.folder / self._served)
        self._served = name
        return name
