"""Several networks made into one: identities for every adapter, methods against formulas, and mistakes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm_lightning.__main__ import main
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.merging.methods import Merging, merged
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.models.peft_methods import MERGEABLE, METHODS
from tests.llm_lightning.models.test_merging import IDS, saved

UNTIED = ("head", "embeddings")
"""Adapters that give embeddings and head a weight each, which their base shares."""


def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits.detach()


@pytest.mark.parametrize("name", MERGEABLE)
def test_an_adapter_at_weight_one_is_itself(base, tmp_path, name):
    expected = saved(base, METHODS[name](), tmp_path / "adapter")
    adapter, flags = str(tmp_path / "adapter"), [] if name in UNTIED else ["--base", str(base)]
    models = [adapter, adapter] if name in UNTIED else [adapter]
    assert main(["merge", *models, str(tmp_path / "merged"), "--method=linear", *flags]) == 0
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.glob(".merged*")), "what was written for a while"


@pytest.fixture
def three(base, tmp_path):
    """Folders of networks that were trained from the base, each by another random change."""
    folders = []
    for seed in range(3):
        network = Backbone(path=str(base)).build()
        g = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=g)
        folders.append(tmp_path / f"model-{seed}")
        save_model_folder(network, None, folders[-1])
    return folders


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("flags", [["--method=linear"], ["--weights=0.3,0.7"], ["--method=slerp", "--weights=0.1,0.9"]])
def test_a_network_merged_with_itself_is_itself_to_the_bit(three, tmp_path, flags):
    model = str(three[0])
    assert main(["merge", model, model, str(tmp_path / "merged"), *flags]) == 0
    ours, theirs = weights(tmp_path / "merged"), weights(three[0])
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "merged" / "config.json").read_bytes() == (three[0] / "config.json").read_bytes()


def test_linear_is_the_mean_and_with_a_base_the_sum_of_changes(base, three, tmp_path):
    models = [str(folder) for folder in three]
    assert main(["merge", *models, str(tmp_path / "mean"), "--weights=1,2,1"]) == 0
    assert main(["merge", *models, str(tmp_path / "sum"), "--weights=1,0.5,-1", "--base", str(base)]) == 0
    ours, summed, origin = weights(tmp_path / "mean"), weights(tmp_path / "sum"), weights(base)
    a, b, c = (weights(folder) for folder in three)
    for name in ours:
        mean = (a[name].double() + 2 * b[name].double() + c[name].double()) / 4
        torch.testing.assert_close(ours[name].double(), mean, rtol=1e-6, atol=1e-7)
        o = origin[name].double()
        change = (a[name].double() - o) + 0.5 * (b[name].double() - o) - (c[name].double() - o)
        torch.testing.assert_close(summed[name].double(), o + change, rtol=1e-5, atol=1e-6)


def test_files_in_parts_and_half_precision_stay_so(base, three, tmp_path):
    for folder in three[:2]:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        shutil.rmtree(folder)
        network.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(three[0].glob("*.safetensors"))) > 1
    assert main(["merge", str(three[0]), str(three[1]), str(tmp_path / "merged")]) == 0
    names = {path.name for path in three[0].iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    one, other, ours = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (*three[:2], tmp_path / "merged")
    )
    for name, weight in ours.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, ((one[name].float() + other[name].float()) / 2).to(torch.bfloat16))


def by_hand(changes, scales, density):
    """TIES number by number, as its paper writes it."""
    size = changes[0].numel()
    kept = []
    for change in changes:
        order = sorted(range(size), key=lambda place, change=change: -abs(float(change[place])))
        largest = set(order[: max(1, round(density * size))])
        kept.append([float(change[place]) if place in largest else 0.0 for place in range(size)])
    found = []
    for place in range(size):
        total = sum(scale * each[place] for scale, each in zip(scales, kept, strict=True))
        agreeing = [
            (scale, each[place])
            for scale, each in zip(scales, kept, strict=True)
            if each[place] and (each[place] > 0) == (total > 0)
        ]
        whole = sum(scale for scale, _ in agreeing)
        found.append(sum(scale * value for scale, value in agreeing) / whole if whole else 0.0)
    return torch.tensor(found)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_equals_its_paper(density):
    g = torch.Generator().manual_seed(0)
    base, *values = torch.randn(4, 60, generator=g)
    scales = (1.0, 2.0, 0.5)
    ours = merged("w", values, base, Merging("ties", scales, density))
    expected = base + by_hand([value - base for value in values], scales, density)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_dare_keeps_changes_on_average():
    g = torch.Generator().manual_seed(0)
    base, one, other = torch.randn(3, 40_000, generator=g)
    merging = Merging("dare", (0.6, 0.4), density=0.25)
    found = merged("w", [one, other], base, merging)
    expected = base + 0.6 * (one - base) + 0.4 * (other - base)
    assert abs(float(((found - expected) * (expected - base)).mean())) < 0.05
    untouched = float((found == base).float().mean())
    assert untouched == pytest.approx(0.75**2, abs=0.01)
    assert torch.equal(found, merged("w", [one, other], base, merging))
    assert not torch.equal(found, merged("w", [one, other], base, Merging("dare", (0.6, 0.4), 0.25, seed=1)))
    whole = merged("w", [one, other], base, Merging("dare", (0.6, 0.4), density=1.0))
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


def test_slerp_keeps_the_length_along_the_arc():
    one, other = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    half = merged("w", [one, other], None, Merging("slerp", (1.0, 1.0)))
    torch.testing.assert_close(half, torch.tensor([3.0, 3.0]) / 2**0.5)
    third = merged("w", [one, other], None, Merging("slerp", (2.0, 1.0)))
    torch.testing.assert_close(third, 3 * torch.tensor([3**0.5 / 2, 0.5]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method=ties"], "--method ties merges changes: name what the networks were trained from by --base"),
        (["--method=nothing"], "invalid choice: 'nothing'"),
        (["--weights=1"], "there are 2 networks, and 1 weights"),
        (["--weights=0,0"], "they must be at least 0, and one above it"),
        (["--method=dare", "--base=model-2", "--density=0"], "--density 0.0 must be above 0 and at most 1"),
        (["--method=slerp", "--base=model-2"], "--method slerp goes from one network to another"),
        (["--base=nowhere"], "nowhere is no model folder"),
        (["--base=wide"], "wide is another network than model-0: hidden_size is 16 there and"),
        (["--base=words"], "words has another vocabulary than"),
    ],
)
def test_mistakes(three, tmp_path, monkeypatch, capfd, flags, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree("model-2", "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    shutil.copytree("model-2", "words")
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.save_pretrained("model-0")
    tokenizer.add_tokens("<|new|>")
    tokenizer.save_pretrained("words")
    assert main(["merge", "model-0", "model-1", "merged", *flags]) == 2
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error, error
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))
