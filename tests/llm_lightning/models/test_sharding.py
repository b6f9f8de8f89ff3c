"""Networks built empty, sharded and loaded, in a group of one rank; two ranks are in tests/distributed."""

import peft
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, Qwen3Config

from llm_lightning.errors import UserError
from llm_lightning.models import export
from llm_lightning.models.adapters.adapter import Adapter, fingerprint
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.loading.content import content_key
from llm_lightning.models.loading.sharding import Sharding, gathered
from llm_lightning.models.tasks import LANGUAGE, REWARD
from llm_lightning.rollouts import Sampler, Sampling
from tests.llm_lightning.conftest import tiny_config

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CONFIGS = {
    "tied": tiny_config(),
    "untied": tiny_config(tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


def in_parts(mesh, backbone, task=LANGUAGE, config=None, dtype=None):
    """The network sharded and loaded, and the adapter on it."""
    network = backbone.build(task=task, empty=True)
    assert all(p.is_meta for p in network.parameters())
    adapter = None if config is None else Adapter(network, config, task)
    names = {name: name for name in network.state_dict()} if adapter is None else adapter.base_names
    sharding = Sharding(mesh, CPU, dtype)
    sharding.apply(network)
    backbone.load_weights(network, task, sharding, names)
    if adapter is not None:
        adapter.after_load()
    return network, adapter


def assert_same(parts, expected):
    own, wanted = dict(parts.named_parameters()), dict(expected.named_parameters())
    assert own.keys() == wanted.keys()
    for name, parameter in wanted.items():
        assert torch.equal(gathered(own[name]), parameter), name
        assert own[name].requires_grad == parameter.requires_grad, name
    buffers = dict(parts.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in expected.named_buffers())


@pytest.fixture
def saved(tmp_path):
    def save(config, task=LANGUAGE):
        torch.manual_seed(3)
        save_model_folder(Backbone(config=config).build(task=task), None, tmp_path / "network")
        return Backbone(path=str(tmp_path / "network"))

    return save


@pytest.mark.parametrize("name", CONFIGS)
def test_the_numbers_from_scratch_are_those_of_a_whole_network(mesh, name):
    backbone = Backbone(config=CONFIGS[name])
    torch.manual_seed(1)
    expected = backbone.build()
    torch.manual_seed(1)
    network, _ = in_parts(mesh, backbone)
    assert_same(network, expected)
    assert network.get_input_embeddings().weight.std() > 0.01
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert tied == CONFIGS[name].tie_word_embeddings


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("task", [LANGUAGE, REWARD], ids=["language", "reward"])
def test_weights_are_read_from_a_folder(mesh, saved, name, task):
    backbone = saved(CONFIGS[name])
    network, _ = in_parts(mesh, backbone, task)
    assert_same(network, backbone.build(task=task))


def test_weights_in_parts_have_the_name_of_whole_ones(mesh, saved):
    backbone = saved(CONFIGS["untied"])
    weights = backbone.build().state_dict()
    network, _ = in_parts(mesh, backbone)
    assert content_key(network.state_dict()) == content_key(weights)
    both_ways = DTensor.from_local(weights["lm_head.weight"], mesh, [Shard(0), Shard(1)])
    assert content_key(weights | {"lm_head.weight": both_ways}) == content_key(weights)


@pytest.mark.parametrize("method", [peft.LoraConfig(r=4, target_modules="all-linear"), peft.VeraConfig(r=4)])
def test_an_adapter_begins_as_on_a_whole_network(mesh, saved, method):
    backbone = saved(CONFIGS["untied"])
    torch.manual_seed(2)
    expected = Adapter(backbone.build(), method)
    torch.manual_seed(2)
    _, adapter = in_parts(mesh, backbone, config=method)
    assert_same(adapter.model, expected.model)
    assert (adapter.base, adapter.names) == (expected.base, expected.names)
    assert adapter.is_on_its_base(adapter.model)


@pytest.mark.parametrize("trained_for", [LANGUAGE, REWARD], ids=["fresh head", "trained head"])
def test_the_head_of_an_adapted_reward_model(mesh, saved, trained_for):
    backbone = saved(CONFIGS["tied"], trained_for)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    torch.manual_seed(2)
    expected = Adapter(backbone.build(task=REWARD), config, REWARD)
    torch.manual_seed(2)
    _, adapter = in_parts(mesh, backbone, REWARD, config)
    assert_same(adapter.model, expected.model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PromptTuningConfig(num_virtual_tokens=4), "puts weights beside the network"),
        (peft.LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"]), "decomposes whole weights"),
        (peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"]), "compares whole weights"),
    ],
)
def test_adapters_that_need_whole_weights_are_refused(saved, config, message):
    with pytest.raises(UserError, match=message):
        Adapter(saved(CONFIGS["tied"]).build(empty=True), config)


def test_other_weights_are_refused(mesh, saved):
    backbone = saved(CONFIGS["tied"])
    network = Backbone(config=tiny_config(num_hidden_layers=3)).build(empty=True)
    sharding = Sharding(mesh, CPU)
    sharding.apply(network)
    with pytest.raises(UserError, match=r"lacks weights by the names model\.layers\.2\."):
        backbone.load_weights(network, LANGUAGE, sharding, {name: name for name in network.state_dict()})


@pytest.mark.parametrize(("task", "auto"), [
    (LANGUAGE, AutoModelForCausalLM), (REWARD, AutoModelForSequenceClassification),
])  # fmt: skip
def test_the_folder_is_written_file_by_file(mesh, saved, monkeypatch, tmp_path, task, auto):
    monkeypatch.setattr(export, "FILE_SIZE", "20KB")
    backbone = saved(CONFIGS["tied"])
    network, _ = in_parts(mesh, backbone, task)
    save_model_folder(network, None, tmp_path / "written")
    assert len(list((tmp_path / "written").glob("model-*.safetensors"))) > 2
    loaded, info = auto.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(network, loaded)


def test_a_rollout_gathers_once_however_long_it_is(mesh, saved, monkeypatch):
    backbone = saved(CONFIGS["tied"])
    network, _ = in_parts(mesh, backbone)
    calls = []
    gather = FSDPParamGroup._to_unsharded
    monkeypatch.setattr(FSDPParamGroup, "_to_unsharded", lambda self: calls.append(self) or gather(self))
    prompts = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    keys = [[(1, 0)], [(1, 1)]]
    counts, texts = [], []
    for length in (2, 12):
        calls.clear()
        texts.append(Sampler(Sampling(max_new_tokens=length), [3]).sample(network, prompts, keys))
        counts.append(len(calls))
    assert 2 <= counts[0] <= 3 and counts[1] <= counts[0]  # two layers, and the root where it is not whole already
    expected = Sampler(Sampling(max_new_tokens=12), [3]).sample(backbone.build(), prompts, keys)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(texts[1], expected, strict=True))


def test_a_fingerprint_is_of_the_weights_that_train(mesh, saved):
    backbone = saved(CONFIGS["tied"])
    network, _ = in_parts(mesh, backbone, dtype=torch.bfloat16)
    before = fingerprint(network)
    network(input_ids=torch.tensor([[1, 2, 3]]))  # leaves the root whole, in bfloat16
    assert fingerprint(network) == before == fingerprint(backbone.build())
