"""SpanPretraining on small T5s: against transformers' own loss, and what it learns."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config, UMT5Config

from datamodules.transformations.spans import Corrupted, SpanCollator
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.encoder_decoder import prepare_spans, spans_loss
from llm_lightning.models.tasks import ENCODER_DECODER
from llm_lightning.modules import SpanPretraining
from tests.llm_lightning.conftest import VOCAB, random_documents, tiny_config

START, PAD = 3, 0
SMALL = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    "decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": 1,
}  # fmt: skip
NETWORKS = {
    "t5": T5Config(**SMALL),
    "t5-gated-untied": T5Config(**SMALL, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": UMT5Config(**SMALL, feed_forward_proj="gated-gelu"),
}


def network_of(config, **settings):
    torch.manual_seed(0)
    return Backbone(config=config, **settings).build(task=ENCODER_DECODER)


def rows(seed: int) -> list[list[Corrupted]]:
    read, told = random_documents([9, 30, 17, 5], seed), random_documents([4, 11, 6, 3], seed + 1)
    pairs = [Corrupted(np.array(a), np.array(b)) for a, b in zip(read, told, strict=True)]
    return [pairs[:3], pairs[3:], []]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_loss_of_packed_documents_is_transformers_own_of_each_alone(kind, attention):
    """Float64, and the weights' gradients."""
    ours, theirs = network_of(NETWORKS[kind], attention=attention).double(), network_of(NETWORKS[kind]).double()
    theirs.load_state_dict(ours.state_dict())
    pairs = rows(5)
    batch = prepare_spans(SpanCollator(PAD)(pairs), START)
    assert len(batch["targets"]) == 24
    loss = spans_loss(ours, batch).loss
    loss.backward()
    total = torch.zeros((), dtype=torch.float64)
    for read, told in (pair for row in pairs for pair in row):
        total = total + theirs(input_ids=torch.tensor(read)[None], labels=torch.tensor(told)[None]).loss * len(told)
    total.backward()
    torch.testing.assert_close(loss.double(), total, rtol=1e-6, atol=1e-6)  # sums of chunks are in float32
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = (p.grad - q.grad).norm() / q.grad.norm()
        assert error < 1e-6, name


def test_what_is_refused():
    with pytest.raises(UserError, match=r"llama networks are no encoder-decoders, .* take a T5, mT5 or UMT5"):
        SpanPretraining(Backbone(config=tiny_config())).check()
    with pytest.raises(UserError, match="bart networks are not known to tell packed documents apart"):
        SpanPretraining(Backbone(config=BartConfig(vocab_size=VOCAB))).check()
    with pytest.raises(UserError, match="attention=flash_attention_2: encoder-decoders have sdpa"):
        SpanPretraining(Backbone(config=NETWORKS["t5"], attention="flash_attention_2")).check()
    with pytest.raises(UserError, match=r"model\.backbone\.compile does not go with SpanPretraining"):
        SpanPretraining(Backbone(config=NETWORKS["t5"], compile=True)).check()
    SpanPretraining(Backbone(config=NETWORKS["t5"])).check()


def test_dropout_is_set_everywhere():
    network = network_of(NETWORKS["umt5"], dropout=0.3)
    rates = {each.p for each in network.modules() if isinstance(each, torch.nn.Dropout)}
    assert rates == {0.3}


def test_it_learns_what_is_behind_a_sentinel(tmp_path):
    """A span holds what the encoder read before and behind it; chance is log(8) for each of its two tokens of four."""
    network = network_of(NETWORKS["t5-gated-untied"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    g = np.random.default_rng(0)

    def batch() -> dict:
        made = []
        for _ in range(16):
            a, b = g.integers(10, 18, 2)
            made.append([Corrupted(np.array([a, 100, b, 1]), np.array([100, a, b, 1]))])
        return prepare_spans(SpanCollator(PAD)(made), START)

    losses = []
    for _ in range(150):
        sums = spans_loss(network, given := batch())
        (sums.loss / len(given["targets"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(sums.nll) / len(given["targets"]))
    assert losses[0] > 2 and losses[-1] < 0.3 * math.log(8) / 2
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    written = loaded.generate(torch.tensor([[12, 100, 15, 1]]), max_new_tokens=4, do_sample=False)
    assert written[0].tolist() == [START, 100, 12, 15, 1]
