"""Greedy soups: the loss against transformers' own, the choice, identities, kills and mistakes."""

import json
import shutil
import signal
import time
from typing import NamedTuple

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm_lightning.__main__ import main
from llm_lightning.evaluation.soup import HeldOut, Losses, greedy_soup
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.tasks import REWARD
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.llm_lightning.conftest import random_documents, tiny_config

TEXT = "The cat sat on the mat, and the dog lay on the log. "


class Piece(NamedTuple):
    ids: np.ndarray
    trained: np.ndarray | None = None


def noisy(network, tokenizer, scale, seed, folder):
    """The network with noise of its own on each weight, as a folder."""
    own = {name: value.clone() for name, value in network.state_dict().items()}
    g = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=g)
    save_model_folder(network, tokenizer, folder)
    network.load_state_dict(own)


@pytest.fixture(scope="module")
def noisy_networks(tmp_path_factory):
    """A network that learned a text, four folders of it with noise (the last has most), and the text."""
    folder, tokenizer = tmp_path_factory.mktemp("networks"), chat_tokenizer("smollm2")
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), initializer_range=0.1)
    network = Backbone(config=config).build(tokenizer)
    ids = torch.tensor([tokenizer.encode(TEXT * 2)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(60):
        network(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for number, scale in enumerate((0.04, 0.05, 0.04, 0.3)):
        noisy(network, tokenizer, scale, number, folder / f"noisy-{number}")
    rows = [{"text": TEXT[start:] + TEXT} for start in range(0, 50, 2)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [{"prompt": f"What sat on {number}?", "completion": TEXT} for number in range(20)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    return folder


@pytest.fixture
def here(noisy_networks, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    for path in noisy_networks.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_loss_is_that_of_transformers():
    torch.manual_seed(0)
    network = Backbone(config=tiny_config()).build().eval()
    documents = [np.array(ids) for ids in random_documents([9, 30, 2, 17])]
    masks = [None, np.arange(30) % 7 > 3, None, np.arange(17) > 11]
    held_out = HeldOut(map(Piece, documents, masks), longest=100)
    losses, expected, counts = held_out.losses(network), [], []
    for ids, mask in zip(documents, masks, strict=True):
        labels = torch.tensor(ids).where(torch.tensor(np.ones(len(ids), bool) if mask is None else mask), -100)
        counts.append(int((labels[1:] != -100).sum()))
        expected.append(network(torch.tensor(ids)[None], labels=labels[None]).loss.item())
    np.testing.assert_allclose(losses.values, expected, rtol=1e-4)
    assert losses.num_tokens.tolist() == counts
    assert losses.mean == pytest.approx(np.average(expected, weights=counts), rel=1e-4)
    low, high = losses.interval
    assert low < losses.mean < high


def test_a_long_document_is_cut_into_pieces_that_have_each_token_once():
    held_out = HeldOut([Piece(np.arange(25)), Piece(np.arange(3)), Piece(np.array([7]))], longest=10)
    assert held_out.num_tokens.tolist() == [9, 9, 6, 2]
    assert [token for request in held_out._requests[:3] for token in request.continuation] == list(range(1, 25))
    assert not len(HeldOut([Piece(np.arange(9), np.zeros(9, bool))], longest=10))


def test_the_best_comes_first_and_what_does_not_help_stays_out():
    """Losses by a rule: a network adds its own number's gain to each piece, with noise."""
    gains, tokens = {0: 0.0, 1: 0.2, 2: -0.1, 3: 0.1}, np.full(50, 10)
    noise = np.random.default_rng(0).normal(0, 0.01, (2**4, 50))

    def losses(numbers):
        own = noise[sum(2**number for number in numbers)]
        return Losses(3 - sum(gains[number] for number in numbers) + own, tokens)

    tried = greedy_soup(4, losses)
    assert [each.number for each in tried] == [1, 3, 0, 2]
    assert [each.kept for each in tried] == [True, True, False, False]
    assert tried[1].difference.value == pytest.approx(-0.1, abs=0.01) and tried[1].p < 0.01
    assert tried[3].p < 0.01, "worse beyond doubt, and not kept"


@pytest.mark.parametrize("data", ["held_out.jsonl", "chats.jsonl"])
def test_a_soup_of_a_network_with_itself_is_itself_to_the_bit(here, data, capfd):
    assert main(["merge", "noisy-0", "noisy-0", "soup", "--method=soup", f"--data={data}"]) == 0
    assert "soup holds the soup of noisy-0." in capfd.readouterr().out
    ours, theirs = weights(here / "soup"), weights(here / "noisy-0")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first, second = json.loads((here / "soup" / "soup.json").read_text())
    assert first["kept"] and not second["kept"]
    assert second["difference"]["value"] == 0 and second["p"] == 1
    assert not list(here.glob(".soup*"))


def test_noise_is_averaged_away_and_a_ruined_network_is_left_out(here, capfd):
    models = [f"noisy-{number}" for number in (3, 0, 1, 2)]
    assert main(["merge", *models, "soup", "--method=soup", "--data=held_out.jsonl"]) == 0
    printed = capfd.readouterr().out
    tried = json.loads((here / "soup" / "soup.json").read_text())
    assert tried[-1]["model"] == "noisy-3" and not tried[-1]["kept"]
    kept = [each["model"] for each in tried if each["kept"]]
    assert len(kept) >= 2 and f"soup holds the soup of {', '.join(kept)}." in printed
    last = [each for each in tried if each["kept"]][-1]
    assert last["loss_with_it"][0] < min(each["own_loss"][0] for each in tried)
    ours, parts = weights(here / "soup"), [weights(here / name) for name in kept]
    for name, weight in ours.items():
        torch.testing.assert_close(weight, sum(part[name] for part in parts) / len(parts))
    network = AutoModelForCausalLM.from_pretrained(here / "soup").eval()
    texts = [json.loads(line)["text"] for line in (here / "held_out.jsonl").read_text().splitlines()]
    tokenizer = chat_tokenizer("smollm2")
    rows = [torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id]]) for text in texts]
    mean = np.average([network(ids, labels=ids).loss.item() for ids in rows], weights=[ids.numel() - 1 for ids in rows])
    assert mean == pytest.approx(last["loss_with_it"][0], rel=1e-3)


def test_adapters_stand_for_their_networks(here, capfd):
    torch.manual_seed(0)
    for number in range(2):
        base = Backbone(path=str((here / "noisy-0").resolve())).build()
        adapter = Adapter(base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        save_model_folder(adapter.model, None, here / f"adapter-{number}", adapter=adapter)
    assert main(["merge", "adapter-0", "noisy-1", "adapter-1", "soup", "--method=soup", "--data=chats.jsonl"]) == 0
    assert len(json.loads((here / "soup" / "soup.json").read_text())) == 3
    assert "adapter_config.json" not in {path.name for path in (here / "soup").iterdir()}
    AutoModelForCausalLM.from_pretrained(here / "soup")
    assert not list(here.glob(".soup*"))


def test_killed_it_goes_on_and_measures_nothing_twice(here, command, folder):
    for path in here.iterdir():
        if path.is_symlink() and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    args = ("merge", "noisy-3", "noisy-0", "noisy-1", "noisy-2")
    flags = ("--method=soup", "--data=held_out.jsonl")
    straight = command(*args, "straight", *flags)
    output, _ = straight.communicate(timeout=120)
    assert straight.returncode == 0, output
    measured = output.count("\nloss ")
    known, counts = folder / ".killed.soup" / "answers-0.jsonl", []
    for at in (2, 5):
        process = command(*args, "killed", *flags)
        while process.poll() is None and not (known.exists() and known.read_bytes().count(b'["') >= at):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        counts.append(process.communicate()[0].count("\nloss "))
        assert process.returncode == -signal.SIGKILL and not (folder / "killed").exists()
    process = command(*args, "killed", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("\nloss ") <= measured - 5 and counts[1] < measured
    for path in (folder / "straight").iterdir():
        assert (folder / "killed" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["noisy-1", "--method=soup"], "keeps what lowers the loss on held-out text: name some by --data PATH"),
        (["noisy-1", "--data=held_out.jsonl"], "only --method soup measures anything"),
        (["noisy-1", "--method=soup", "--data=held_out.jsonl", "--weights=1,2"], "--weights: --method soup takes"),
        (["noisy-1", "--method=soup", "--data=nowhere"], "--data nowhere: these are no conversations"),
        (["noisy-1", "--method=soup", "--data=short.jsonl"], "--data holds 1 pieces of up to 128 tokens"),
        (["reward", "--method=soup", "--data=held_out.jsonl"], "architectures is"),
        (["nothing", "--method=soup", "--data=held_out.jsonl"], "nothing is no model folder"),
    ],
)
def test_mistakes(here, capfd, args, words):
    (here / "short.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    if args[0] == "reward":
        reward = Backbone(path=str((here / "noisy-0").resolve())).build(chat_tokenizer("smollm2"), REWARD)
        save_model_folder(reward, chat_tokenizer("smollm2"), here / "reward")
    assert main(["merge", "noisy-0", args[0], "soup", *args[1:]]) == 2
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error, error
    assert not (here / "soup").exists() and not list(here.glob(".soup*"))


def test_reward_models_are_no_soup(here, capfd):
    reward = Backbone(path=str((here / "noisy-0").resolve())).build(chat_tokenizer("smollm2"), REWARD)
    for number in range(2):
        save_model_folder(reward, chat_tokenizer("smollm2"), here / f"reward-{number}")
    assert main(["merge", "reward-0", "reward-1", "soup", "--method=soup", "--data=held_out.jsonl"]) == 2
    assert "reward-0 is no language model, which alone have a loss on text" in capfd.readouterr().err


def test_a_merge_that_fails_leaves_nothing(here, mount_small_disk, capfd):
    adapter = Adapter(
        Backbone(path=str((here / "noisy-0").resolve())).build(), peft.LoraConfig(target_modules=["q_proj"])
    )
    save_model_folder(adapter.model, None, here / "adapter", adapter=adapter)
    disk = mount_small_disk(here / "disk", "100k")
    assert main(["merge", "adapter", "disk/merged"]) == 2
    assert "space" in capfd.readouterr().err
    assert not list(disk.iterdir())
    shutil.copytree(here / "adapter", here / "other")
    assert main(["merge", "adapter", "merged"]) == 0
    assert not list(here.glob(".merged*"))
