"""MaskedPretraining on small encoders: against transformers' own loss, and whatever the micro-batches."""

from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, DebertaV2Config, ModernBertConfig, PreTrainedConfig, RobertaConfig

from llm_lightning.errors import UserError
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.models.tasks import MASKED
from llm_lightning.modules import MaskedPretraining
from llm_lightning.modules.schedule import Schedule
from tests.llm_lightning.conftest import VOCAB, pack, random_documents, stack, tiny_config
from tests.llm_lightning.modules.test_pretraining import fit, sgd

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
HIDDEN, EVERY = 1, 4  # the mask token, and one in so many tokens is hidden


def bert(**changes) -> BertConfig:
    return BertConfig(**SMALL | {"max_position_embeddings": 64, "initializer_range": 0.2} | changes)


def modern_bert(**changes) -> ModernBertConfig:
    tokens = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], 0)
    settings = {"max_position_embeddings": 64, "local_attention": 8, "global_attn_every_n_layers": 2}
    return ModernBertConfig(**SMALL | settings | tokens | {"initializer_range": 0.2} | changes)


ENCODERS = {"bert": bert(), "modernbert": modern_bert()}


def encoder(config: PreTrainedConfig, **settings):
    torch.manual_seed(0)
    return Backbone(config=config, dropout=0.0, **settings).build(task=MASKED)


def masked(batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Some tokens hidden, first ones of documents among them, and others in each row."""
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.rand(batch["input_ids"].shape, generator=g) < 1 / EVERY) & (batch["input_ids"] > 0)
    labels = batch["input_ids"].where(hidden, -100)
    return {**batch, "labels": labels, "input_ids": batch["input_ids"].where(~hidden, HIDDEN)}


def ragged_row(seed: int) -> dict[str, torch.Tensor]:
    return masked(pack(random_documents([5 + seed % 7, 12, 3], seed), 32), seed)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_loss_of_packed_documents_is_transformers_own_of_each_alone(kind):
    """Same masks, float64, weights' gradients too."""
    ours = encoder(ENCODERS[kind]).double().eval()
    theirs = encoder(ENCODERS[kind], attention="eager").double().eval()
    theirs.load_state_dict(ours.state_dict())
    behaviour = behaviour_of(ours)
    assert (behaviour.attention, behaviour.packs, behaviour.own_logits) == (ATTENTION, True, False)
    batch = stack(*(ragged_row(i) for i in range(6)))
    prepared = prepare_batch(batch, two_way=True)
    assert len(prepared["targets"]) == (batch["labels"] != -100).sum() > 10
    loss = language_loss(ours, prepared).loss
    loss.backward()
    total = torch.zeros((), dtype=torch.float64)
    for ids, positions, labels in zip(*(batch[n] for n in ("input_ids", "position_ids", "labels")), strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for a, b in pairwise(starts):
            if count := int((labels[a:b] != -100).sum()):
                total = total + theirs(input_ids=ids[None, a:b], labels=labels[None, a:b]).loss * count
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-6)  # sums of chunks are in float32
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "config",
    [RobertaConfig(**SMALL, pad_token_id=0), DebertaV2Config(**SMALL, pad_token_id=0)],
    ids=lambda config: config.model_type,
)
def test_encoders_that_cannot_be_packed_take_their_documents_apart(config):
    """RoBERTa counts positions from its padding token on, DeBERTa has attention of its own."""
    ours = encoder(config).eval()
    assert not behaviour_of(ours).packs
    theirs = encoder(config, attention="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    document = torch.tensor(random_documents([11], 3))
    labels = document.clone()
    labels[0, ::3] = -100
    row = pack([document[0].tolist(), *random_documents([9, 8], 4)], 32)
    row["labels"] = torch.full_like(row["labels"], -100)
    row["labels"][0, :11] = labels
    found = language_loss(ours, prepare_batch(row, two_way=True))
    expected = theirs(input_ids=document, labels=labels).loss * (labels != -100).sum()
    torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-4)


def test_a_token_sees_all_of_its_document_and_nothing_of_others():
    network = encoder(modern_bert(local_attention=64)).eval()
    row = ragged_row(2)
    reference = language_loss(network, prepare_batch(row, two_way=True)).nll
    first, second = (row["position_ids"][0] == 0).nonzero().flatten()[:2].tolist()
    labels = torch.full_like(row["labels"], -100)
    labels[0, first] = 7

    def loss_of_the_first_token(changed: int) -> float:
        ids = row["input_ids"].clone()
        ids[0, changed] = 99
        return float(
            language_loss(network, prepare_batch({**row, "labels": labels, "input_ids": ids}, two_way=True)).nll
        )

    unchanged = float(language_loss(network, prepare_batch({**row, "labels": labels}, two_way=True)).nll)
    assert reference > 0
    assert loss_of_the_first_token(second - 1) != unchanged
    assert loss_of_the_first_token(second) == unchanged


class Recorder(MaskedPretraining):
    """Keeps the loss of each optimizer step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses, self.norms = [], []

    def step_metrics(self, totals):
        metrics = super().step_metrics(totals)
        self.losses.append(metrics["train/loss"])
        self.norms.append(metrics["train/grad_norm"])
        return metrics


def module(kind, optimizer, **settings):
    backbone = Backbone(config=ENCODERS[kind], dropout=0.0)
    return Recorder(backbone, optimizer, Schedule("constant", warmup=0), **settings)


@pytest.mark.parametrize("kind", ENCODERS)
def test_micro_batches_do_not_matter(kind):
    """1x8 = 2x4 = 8x1, although the rows hide different numbers of tokens, and one none."""
    rows = [ragged_row(i) for i in range(8)]
    rows[5]["labels"] = torch.full_like(rows[5]["labels"], -100)
    assert len({int((row["labels"] != -100).sum()) for row in rows}) > 3
    results = []
    for size in (8, 4, 1):
        batches = [stack(*rows[i : i + size]) for i in range(0, 8, size)]
        trained = fit(module(kind, sgd), batches, accumulate=8 // size)
        results.append([trained.losses, trained.norms, [p.detach() for p in trained.model.parameters()]])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_it_learns():
    rows = [ragged_row(i) for i in range(8)]
    trained = fit(module("modernbert", lambda p: torch.optim.AdamW(p, lr=1e-2)), [stack(*rows)] * 60)
    assert trained.losses[-1] < 0.3 * trained.losses[0]


def test_what_is_no_encoder_and_what_does_not_go_with_one_is_refused():
    with pytest.raises(UserError, match="transformers has no masked language model of the architecture llama"):
        MaskedPretraining(Backbone(config=tiny_config())).check()
    with pytest.raises(UserError, match="do not look at the tokens behind a hidden one"):
        MaskedPretraining(Backbone(config=bert(is_decoder=True))).check()
    import peft

    with pytest.raises(UserError, match=r"model.peft does not go with MaskedPretraining"):
        MaskedPretraining(Backbone(path="somewhere"), peft=peft.LoraConfig()).check()
    with pytest.raises(UserError, match="transformers' pipeline `fill-mask`"):
        MaskedPretraining(Backbone(config=bert())).predict_step({}, 0)
