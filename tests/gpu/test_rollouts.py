"""Rollouts against transformers' `generate`."""

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.rollouts import Sampler, Sampling
from tests.llm_lightning.conftest import VOCAB, tiny_config

pytestmark = pytest.mark.gpu
EOS = 7


@pytest.mark.parametrize("num_slots", [64, 3])
def test_greedy_completions_equal_those_of_generate(device, num_slots):
    """In float32: in bfloat16 two tokens are often equally likely, and rounding decides."""
    torch.manual_seed(0)
    config = tiny_config(max_position_embeddings=256, initializer_range=0.3, eos_token_id=EOS, pad_token_id=EOS)
    network = Backbone(config=config).build().to(device)
    g = torch.Generator().manual_seed(5)
    prompts = [torch.randint(8, VOCAB, (n,), generator=g) for n in (3, 17, 1, 30, 8, 5, 2)]
    ours = Sampler(Sampling(48, temperature=0), [EOS], num_slots).sample(network, prompts, [[(1, i)] for i in range(7)])
    network.eval()
    options = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": EOS, "use_cache": True, "max_new_tokens": 48}
    for prompt, completion in zip(prompts, ours, strict=True):
        row = prompt[None].to(device)
        expected = network.generate(input_ids=row, attention_mask=torch.ones_like(row), **options)[0, len(prompt) :]
        assert completion.tokens.tolist() == expected.tolist()
