"""Rewards of packed and padded texts against transformers on single ones, in float64."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BloomConfig, FalconConfig, GPT2Config, GPTJConfig

from datamodules.serving.layout import SpanLayout
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.examination.miniature import randomize
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.models.tasks import LANGUAGE, REWARD, with_fresh_head
from tests.llm_lightning.conftest import VOCAB, random_documents, tiny_config

PAD = 3
PROMPT, *RESPONSES = random_documents([20, 9, 1, 14])
# The padding token ends one text, stands in another, and is a whole response.
RESPONSES = [[*RESPONSES[0], PAD], [PAD], [*RESPONSES[2][:5], PAD, *RESPONSES[2][5:]]]
TEXTS = [PROMPT + response for response in RESPONSES]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def scorer(request):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    config = tiny_config() if request.param == "llama" else GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    network = Backbone(config=config).build(task=REWARD).eval()
    torch.set_default_dtype(torch.float32)
    torch.nn.init.normal_(network.score.weight)
    return network


@pytest.fixture(scope="module")
def expected(scorer):
    """Of each text alone, by transformers' own network and attention."""
    config = copy.deepcopy(scorer.config)
    own = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").double().eval()
    own.load_state_dict(scorer.state_dict())
    own.config.pad_token_id = None
    return torch.cat([own(input_ids=torch.tensor([text])).logits[0] for text in TEXTS]).detach()


def of(scorer, batch, name="ends"):
    with torch.no_grad():
        return rewards(scorer, prepare_texts(batch))[name].double()


def packed(texts, seq_len, pad=PAD):
    """All in one row, each whole."""
    layout = SpanLayout(1, seq_len, pad)
    ends = [layout.add(0, np.array(text)) for text in texts]
    return layout.batch() | {"ends": torch.tensor(ends)}


@pytest.mark.parametrize("pad", [PAD, 0, TEXTS[0][-2]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_reward(scorer, expected, pad, side):
    width = max(map(len, TEXTS)) + 3
    ids, mask = torch.full((3, width), pad), torch.zeros(3, width, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    torch.testing.assert_close(of(scorer, {"input_ids": ids, "attention_mask": mask}), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1]])
def test_neither_packing_nor_neighbours_change_a_reward(scorer, expected, order):
    values = of(scorer, packed([TEXTS[i] for i in order], 128))
    torch.testing.assert_close(values, expected[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", [20, 7, 1])
def test_a_shared_prompt_changes_no_reward_and_no_gradient(scorer, expected, shared):
    layout = SpanLayout(2, 100, PAD)
    layout.add(0, np.array([5, 6, 7]))
    ends = [layout.add(0, np.array(TEXTS[0]))]
    ends += [layout.add(0, np.array(text[shared:]), slice(3, 3 + shared)) for text in TEXTS[1:]]
    batch = layout.batch() | {"ends": torch.tensor(ends)}
    torch.testing.assert_close(of(scorer, batch), expected, atol=1e-5, rtol=0)
    gradients = []
    for way in (batch, packed(TEXTS, 128)):
        scorer.zero_grad()
        (rewards(scorer, prepare_texts(way))["ends"] * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in scorer.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-5, msg=name)


OTHERS = {
    "llama, sdpa": tiny_config(),
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "gpt-j": GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4),
    "falcon": FalconConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_read_texts_that_share_a_prompt_in_rows_of_their_own(name):
    attention = "sdpa" if "sdpa" in name else Backbone.attention
    network = Backbone(config=OTHERS[name], attention=attention).build(task=REWARD).eval()
    torch.manual_seed(3)
    randomize(network)
    layout = SpanLayout(2, 64, PAD)
    ends = [layout.add(0, np.array(TEXTS[0])), layout.add(0, np.array(RESPONSES[1]), slice(0, 20))]
    ends.append(layout.add(1, np.array(TEXTS[2])))
    values = of(network, layout.batch() | {"ends": torch.tensor(ends)}).float()
    network.config.pad_token_id = None  # it stands in the texts
    with torch.no_grad():
        alone = [network(input_ids=torch.tensor([text])).logits[0, 0] for text in TEXTS]
    assert torch.stack(alone).std() > 0.05
    torch.testing.assert_close(values, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_new_head_is_zero_and_a_trained_one_is_kept(tmp_path):
    Backbone(config=tiny_config()).build().save_pretrained(tmp_path / "language")
    scorer = Backbone(path=str(tmp_path / "language")).build(task=REWARD)
    assert not scorer.score.weight.any()
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(tmp_path / "reward")
    again = Backbone(path=str(tmp_path / "reward")).build(task=REWARD)
    assert torch.equal(again.score.weight, scorer.score.weight)


def test_the_layers_of_a_language_model_go_under_a_fresh_head():
    language = Backbone(config=tiny_config()).build(task=LANGUAGE)
    scorer = with_fresh_head(language, REWARD)
    assert scorer.get_decoder() is language.get_decoder() and not scorer.score.weight.any()
    assert all(p.device.type == "cpu" and p.requires_grad for p in scorer.parameters())


def test_a_classifier_of_several_labels_is_refused(tmp_path):
    AutoModelForSequenceClassification.from_config(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="classifier of 3 labels"):
        Backbone(path=str(tmp_path)).build(task=REWARD)
