"""Drafts of a smaller network: the same answers in fewer passes, and which ones are refused."""

import copy

import pytest
import torch
from transformers import BloomConfig, LlamaConfig

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.rollouts import DraftModel, LocalEngine, PromptLookup, Sampler, Sampling
from llm_lightning.rollouts.thinking import Thinking
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.rollouts.speculation.test_speculation import counting, same
from tests.llm_lightning.rollouts.test_local_engine import CONFIG, ask
from tests.llm_lightning.rollouts.test_sampler import keys_for

EOS = 7


def saved(network, tokenizer, path):
    save_model_folder(network, tokenizer, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A network, and one that is nearly the same: it stands for a distilled one."""
    torch.manual_seed(0)
    path, tokenizer = tmp_path_factory.mktemp("models"), chat_tokenizer("smollm2")
    network = Backbone(config=CONFIG).build(tokenizer)
    network.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 330)]
    draft = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.03 * parameter.std() * torch.randn_like(parameter)
    return saved(network, tokenizer, path / "model"), saved(draft, tokenizer, path / "draft")


def asked():
    g = torch.Generator().manual_seed(5)
    return [torch.randint(8, 440, (n,), generator=g) for n in (3, 17, 1, 30, 8, 70, 5, 2)]


@pytest.mark.parametrize(
    "sampling", [Sampling(40, temperature=0), Sampling(40, temperature=0.8, top_p=0.95), Sampling(40, top_k=30)]
)
@pytest.mark.parametrize("num_slots", [64, 3])
def test_the_same_answers_in_fewer_passes(folders, sampling, num_slots):
    network = LocalEngine(str(folders[0])).network
    prompts, keys = asked(), keys_for(8, 2)
    plain = Sampler(sampling, [EOS], num_slots).sample(network, prompts, keys)
    passes = counting(network)
    speculative = DraftModel(str(folders[1]), cost=0.05)
    drafts = counting(speculative.network(network))
    same(Sampler(sampling, [EOS], num_slots, speculative=speculative).sample(network, prompts, keys), plain)
    num_passes = len(passes)
    assert drafts
    Sampler(sampling, [EOS], num_slots).sample(network, prompts, keys)
    # With all of them at once there are as many passes as the one that is guessed worst needs.
    assert num_passes < (0.7 if num_slots == 3 else 1) * (len(passes) - num_passes)


def test_a_draft_that_is_never_right_is_soon_given_up(folders, tmp_path):
    network = LocalEngine(str(folders[0])).network
    torch.manual_seed(9)
    other = saved(
        Backbone(config=CONFIG).build(chat_tokenizer("smollm2")), chat_tokenizer("smollm2"), tmp_path / "other"
    )
    speculative = DraftModel(str(other), cost=0.2)
    drafts = counting(speculative.network(network))
    sampling = Sampling(120)
    plain = Sampler(sampling, []).sample(network, asked()[:4], keys_for(4))
    same(Sampler(sampling, [], speculative=speculative).sample(network, asked()[:4], keys_for(4)), plain)
    assert 1 < len(drafts) < 30


def test_texts_of_an_engine_are_the_same(folders):
    requests = [ask(f"hello {i % 3} there", seed=i, temperature=0.6 * (i % 2)) for i in range(8)]
    plain = dict(LocalEngine(str(folders[0]), num_slots=3).write(requests))
    for speculative in (DraftModel(str(folders[1]), cost=0.1), PromptLookup()):
        engine = LocalEngine(str(folders[0]), num_slots=3, speculative=speculative)
        engine.check()
        assert dict(engine.write(requests)) == plain
        messages = [{"role": "user", "content": "hello"}]
        shown: list[int] = []
        reply = engine.reply(messages, Sampling(24, 0.0), (1, 1), lambda tokens, shown=shown: shown.append(len(tokens)))
        assert reply == LocalEngine(str(folders[0])).reply(messages, Sampling(24, 0.0), (1, 1), lambda tokens: None)
        assert shown == sorted(shown) and shown[-1] == reply.num_tokens
        engine.release()
        assert dict(engine.write(requests[:2])) == {0: plain[0], 1: plain[1]}


@pytest.mark.parametrize("end", ["\n</think>\n\n", "the"], ids=["never written", "written"])
def test_thoughts_and_their_answers_are_the_same(folders, end):
    requests = [ask(f"hello {i % 3} there", seed=i) for i in range(6)]
    thinking = Thinking(budget=40, waits=1, end=end)
    plain = dict(LocalEngine(str(folders[0]), num_slots=3, thinking=thinking).write(requests))
    for speculative in (DraftModel(str(folders[1]), cost=0.02), PromptLookup()):
        engine = LocalEngine(str(folders[0]), num_slots=3, thinking=thinking, speculative=speculative)
        assert dict(engine.write(requests)) == plain


def test_a_draft_with_another_vocabulary_is_refused(folders, tmp_path):
    tokenizer = chat_tokenizer("qwen3")
    torch.manual_seed(0)
    config = LlamaConfig(**(CONFIG.to_dict() | {"vocab_size": len(tokenizer)}))
    other = saved(Backbone(config=config).build(tokenizer), tokenizer, tmp_path / "other")
    engine = LocalEngine(str(folders[0]), field="--model", speculative=DraftModel(str(other)))
    with pytest.raises(
        UserError, match=r"speculative\.path='.*other' has another vocabulary than the model: its token"
    ):
        engine.check()


def test_a_draft_that_keeps_no_slots_is_refused(folders, tmp_path):
    tokenizer = chat_tokenizer("smollm2")
    bloom = BloomConfig(vocab_size=448, hidden_size=32, n_layer=2, n_head=4)
    other = saved(Backbone(config=bloom).build(tokenizer), tokenizer, tmp_path / "bloom")
    engine = LocalEngine(str(folders[0]), speculative=DraftModel(str(other)))
    engine.check()
    with pytest.raises(UserError, match="BloomForCausalLM keeps no keys and values"):
        list(engine.write([ask("hello")]))


@pytest.mark.parametrize("settings", [{"num_tokens": 0}, {"cost": 0.0}])
def test_settings_that_cannot_work_are_named(folders, settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=rf"speculative\.{name}={value} must be"):
        DraftModel(str(folders[1]), **settings).check(chat_tokenizer("smollm2"), "speculative")
