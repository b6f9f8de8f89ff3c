"""A mixture's load-balancing loss against transformers' own."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.examination.miniature import randomize
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule
from tests.llm_lightning.conftest import VOCAB, pack, random_documents, stack
from tests.llm_lightning.modules.test_pretraining import fit, sgd

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3, "pad_token_id": 0,
    "output_router_logits": True,
}  # fmt: skip
MIXTURES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen3": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "head_dim": 8}),
    "granite": ("GraniteMoeConfig", {"num_local_experts": 4}),
    "jamba, one document a row": (
        "JambaConfig",
        {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}
        | {"expert_layer_offset": 0, "use_mamba_kernels": False},
    ),
}  # fmt: skip


def networks(name, **changes):
    kind, settings = MIXTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SMALL | settings | changes)
    ours = Backbone(config=config).build()
    randomize(ours)
    theirs = AutoModelForCausalLM.from_config(config).train()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", MIXTURES)
def test_loss_and_router_gradient_are_those_of_transformers(name):
    """Packed rows with blanks against transformers' padded rows of the same documents: its masked mean is over the same
    tokens.
    """
    ours, theirs = networks(name)
    documents = random_documents([7, 20, 12])
    sums = language_loss(ours, prepare_batch(stack(pack(documents[:2], 40), pack(documents[2:], 40))))
    width, count = 20, sum(len(d) - 1 for d in documents)
    ids = torch.tensor([d + [0] * (width - len(d)) for d in documents])
    mask = torch.tensor([[1] * len(d) + [0] * (width - len(d)) for d in documents])
    output = theirs(input_ids=ids, attention_mask=mask, labels=ids.where(mask.bool(), -100))
    torch.testing.assert_close(sums.loss, output.loss * count, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.balance, 0.3 * output.aux_loss.detach() * count, rtol=1e-5, atol=1e-5)
    sums.loss.backward()
    (output.loss * count).backward()
    routers = [
        (n, p.grad) for n, p in ours.named_parameters() if ("gate." in n or "router" in n) and p.grad is not None
    ]
    assert routers and all(gradient.abs().max() > 1e-3 for _, gradient in routers)
    for where, gradient in routers:
        expected = theirs.get_parameter(where).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=where)


def test_padding_is_no_load():
    ours, _ = networks("mixtral")
    documents = random_documents([7, 20])
    losses = [language_loss(ours, prepare_batch(pack(documents, width))).balance for width in (27, 64)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


def test_it_is_no_part_of_validation_nor_of_a_network_that_does_not_ask():
    ours, _ = networks("mixtral")
    batch = prepare_batch(pack(random_documents([7, 20]), 30))
    with torch.no_grad():
        sums = language_loss(ours, batch)
    assert sums.balance is None and sums.loss == sums.nll
    silent, _ = networks("mixtral", output_router_logits=False)
    assert language_loss(silent, batch).balance is None


def test_a_step_logs_it_apart_and_weighs_micro_batches_by_their_tokens():
    """Each micro-batch has its own loss; the step's is their mean, weighted by trained tokens."""
    kind, settings = MIXTURES["mixtral"]
    backbone = Backbone(config=getattr(transformers, kind)(**SMALL | settings))

    steps = []

    class Recorder(CausalPretraining):
        def step_metrics(self, totals):
            steps.append(super().step_metrics(totals))
            return dict(steps[-1])

    module = Recorder(backbone, sgd, Schedule("constant", warmup=0))
    batches = [pack(random_documents([length], seed=length), 30) for length in (30, 9)]
    torch.manual_seed(0)
    fit(module, batches, accumulate=2)
    torch.manual_seed(0)
    network = backbone.build()
    parts = [language_loss(network, prepare_batch(batch)) for batch in batches]
    metrics = steps[0]
    assert metrics["train/aux_loss"] == pytest.approx(sum(float(p.balance) for p in parts) / 37, rel=1e-4)
    assert metrics["train/loss"] == pytest.approx(sum(float(p.nll) for p in parts) / 37, rel=1e-4)


def test_an_architecture_without_such_a_loss_is_refused():
    config = transformers.DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, output_router_logits=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="output_router_logits=true"):
        Backbone(config=config).behaviour()
