"""Architectures of every kind: what is tried out before training, and losses that are transformers' own."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llm_lightning.errors import UserError
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.examination.miniature import miniature, randomize
from llm_lightning.models.heads import language_loss, prepare_batch
from llm_lightning.models.running.behaviour import behaviour_of
from llm_lightning.models.tasks import LANGUAGE, REWARD
from tests.llm_lightning.conftest import VOCAB, pack, random_documents, stack

LENGTHS = [7, 20, 3, 11]
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
USUAL = SMALL | {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

PACKED = {
    "llama": ("LlamaConfig", USUAL),
    "gpt2": ("GPT2Config", GPT),
    "gemma2, caps": ("Gemma2Config", USUAL | {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4}),
    "gpt-oss, sinks": (
        "GptOssConfig",
        USUAL | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "granite, scale": ("GraniteConfig", USUAL | {"logits_scaling": 3.0}),
    "cohere, scale": ("CohereConfig", USUAL | {"logit_scale": 0.25}),
    "deepseek, values of their own width": (
        "DeepseekV3Config",
        USUAL | {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
        | {"qk_nope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        | {"moe_intermediate_size": 16, "first_k_dense_replace": 1},
    ),
}  # fmt: skip
DENSE = {
    "gpt-j": ("GPTJConfig", GPT | {"rotary_dim": 4}, "eager"),
    "stablelm": ("StableLmConfig", USUAL, "sdpa"),
}
APART = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", SMALL | {"num_attention_heads": 4}),
    "mamba": ("MambaConfig", SMALL | {"state_size": 4}),
    "mamba2": (
        "Mamba2Config",
        SMALL | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "lfm2": ("Lfm2Config", USUAL | {"full_attn_idxs": [1]}),
    "qwen3-next": (
        "Qwen3NextConfig",
        USUAL | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {"head_dim": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "xglm": ("XGLMConfig", {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "recurrent gemma, cap": (
        "RecurrentGemmaConfig",
        USUAL | {"num_hidden_layers": 3, "lru_width": 32, "logits_soft_cap": 3.0, "attention_window_size": 4},
    ),
}  # fmt: skip


def networks(name, settings):
    """Ours, and transformers' with the same weights."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**settings)
    ours = Backbone(config=config).build().eval()
    randomize(ours)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def losses(ours, theirs):
    """Of four documents in two packed rows, and of each one alone."""
    documents = random_documents(LENGTHS)
    packed = stack(pack(documents[:2], 30), pack(documents[2:], 30))
    loss = language_loss(ours, prepare_batch(packed)).loss
    rows = [torch.tensor([document]) for document in documents]
    return loss, sum(theirs(input_ids=row, labels=row).loss * (row.shape[1] - 1) for row in rows)


@pytest.mark.parametrize("name", PACKED)
def test_networks_that_pack(name):
    ours, theirs = networks(*PACKED[name])
    assert behaviour_of(ours).packs and ours.config._attn_implementation == ATTENTION
    torch.testing.assert_close(*losses(ours, theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_networks_that_pack_by_a_mask_of_transformers(name):
    kind, settings, attention = DENSE[name]
    ours, theirs = networks(kind, settings)
    assert behaviour_of(ours).packs and ours.config._attn_implementation == attention
    torch.testing.assert_close(*losses(ours, theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", APART)
def test_networks_whose_documents_would_see_each_other(name):
    ours, theirs = networks(*APART[name])
    assert not behaviour_of(ours).packs
    loss, expected = losses(ours, theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (where, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5 * largest, msg=where)


def test_a_head_with_more_to_it_gives_the_logits_of_the_network():
    settings = USUAL | {"is_decoder": True}
    ours, theirs = networks("BertConfig", settings | {"max_position_embeddings": 64})
    assert behaviour_of(ours).own_logits
    torch.testing.assert_close(*losses(ours, theirs), rtol=1e-5, atol=1e-5)


def test_a_row_that_is_one_document_stays_one():
    """`document_mask: false`: positions count through the row, and what follows each other is read as one text."""
    ours, theirs = networks(*APART["mamba"])
    row = torch.tensor([[token for document in random_documents([9, 12]) for token in document]])
    batch = {"input_ids": row, "labels": row, "position_ids": torch.arange(21)[None]}
    loss = language_loss(ours, prepare_batch(batch)).loss
    torch.testing.assert_close(loss, theirs(input_ids=row, labels=row).loss * 20, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("BertConfig", USUAL, "look at the tokens that they are to predict"),
        ("BartConfig", {"vocab_size": VOCAB, "d_model": 32}, "something else than the next token"),
        ("XLNetConfig", {"vocab_size": VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4}, "look at the tokens"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(name, settings, words):
    with pytest.raises(UserError, match=words):
        Backbone(config=getattr(transformers, name)(**settings)).behaviour()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("BertConfig", USUAL | {"is_decoder": True}),
        ("CTRLConfig", {"vocab_size": VOCAB, "n_embd": 32, "dff": 64, "n_layer": 2, "n_head": 4}),
        ("BartConfig", {"vocab_size": VOCAB, "d_model": 32}),
    ],
)
def test_a_reward_head_of_another_kind_is_refused(name, settings):
    with pytest.raises(UserError, match=r"cannot be trained as a reward model: .* no linear head named score"):
        Backbone(config=getattr(transformers, name)(**settings)).behaviour(REWARD)


def test_another_attention_is_tried_as_it_was_asked_for():
    config = transformers.LlamaConfig(**USUAL)
    assert Backbone(config=config, attention="eager").behaviour().attention == "eager"
    with pytest.raises(UserError, match=r"Leave out model\.backbone\.attention=no_such_thing"):
        Backbone(config=transformers.GPTJConfig(**GPT | {"rotary_dim": 4}), attention="no_such_thing").behaviour()


def test_trying_out_leaves_random_numbers_and_the_config_alone():
    config = transformers.LlamaConfig(**USUAL | {"max_position_embeddings": 77})
    before, state, threads = config.to_dict(), torch.random.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        Backbone(config=config).behaviour()
    assert config.to_dict() == before
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ApertusConfig", USUAL),  # its activation has weights
        ("OpenAIGPTConfig", GPT),
        ("ReformerConfig", {"vocab_size": VOCAB, "is_decoder": True, "axial_pos_embds": False}),
    ],
)
def test_weights_that_only_a_constructor_starts_are_those_of_transformers(name, settings):
    """Built empty, they would be whatever lay in memory."""
    backbone = Backbone(config=getattr(transformers, name)(**settings))
    assert backbone.behaviour().unruled
    torch.manual_seed(0)
    ours = backbone.build()
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(backbone.read_config())
    for (where, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=where)
    with pytest.raises(UserError, match="cannot start from scratch sharded"):
        backbone.build(empty=True)


@pytest.mark.parametrize("task", [LANGUAGE, REWARD])
@pytest.mark.parametrize("tied", [True, False])
def test_rules_for_all_weights_let_a_network_be_built_empty(tied, task):
    config = transformers.LlamaConfig(**USUAL | {"tie_word_embeddings": tied})
    assert Backbone(config=config).behaviour(task).unruled is None


def test_a_miniature_keeps_what_decides():
    small = miniature(transformers.Gemma3TextConfig(sliding_window=512, final_logit_softcapping=30.0))
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}
    assert small.final_logit_softcapping == 30.0 and small.sliding_window < 10
    assert miniature(transformers.JambaConfig()).layers_block_type.count("attention") >= 1
    late = miniature(transformers.Qwen2Config(use_sliding_window=True, max_window_layers=20, num_hidden_layers=24))
    assert set(late.layer_types) == {"sliding_attention", "full_attention"}
    assert miniature(transformers.ZambaConfig(), of_each_kind=2).layers_block_type.count("hybrid") == 2
    dbrx = miniature(
        transformers.DbrxConfig(n_heads=48, d_model=6144, attn_config={"kv_n_heads": 8, "rope_theta": 5e5})
    )
    assert (dbrx.n_heads, dbrx.attn_config.kv_n_heads) == (2, 1) and dbrx.ffn_config.hidden_size == dbrx.d_model
