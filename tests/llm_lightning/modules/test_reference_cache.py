"""The reference on disk: to the bit what the live one gives, refused where it is another's, kept by killed builds."""

import numpy as np
import pytest
import torch

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.loading.content import content_key
from llm_lightning.modules.preference.reference_cache import ReferenceCache
from llm_lightning_safety.seals import seal_folder
from tests.llm_lightning.modules.test_preference_optimization import (
    module_of,
    network_of,
    singles_of,
    thanks,
    trainer_of,
)
from tests.llm_lightning.modules.test_pretraining import adamw


@pytest.fixture
def folder(tmp_path):
    save_model_folder(network_of(), None, tmp_path / "model")
    return tmp_path / "model"


def trained(pairs, folder, kind="dpo", **settings):
    module = module_of(kind, adamw, backbone=Backbone(path=str(folder)), **settings)
    torch.manual_seed(0)
    trainer_of(max_steps=3, accumulate_grad_batches=2, num_sanity_val_steps=0, val_check_interval=2).fit(
        module, datamodule=pairs
    )
    return module


@pytest.mark.parametrize(("kind", "single"), [("dpo", False), ("kto", False), ("kto", True)])
def test_training_with_it_is_the_same_to_the_bit_and_holds_one_network(pairs_of, folder, kind, single):
    records = singles_of(thanks(24, 0))[:-1] if single else list(thanks(40, 0))
    settings = {"seq_len": 192, "batch_size": 2, "val_share": 0.1}
    live = trained(pairs_of(records, **settings), folder, kind)
    cached = trained(pairs_of(records, **settings), folder, kind, reference="cached")
    assert live._reference[0].frozen is not None and not cached._reference
    assert len(cached._cache.values) == (4 if kind == "kto" else 2)
    for name, weight in live.model.named_parameters():
        assert torch.equal(cached.model.get_parameter(name), weight), name


def folders(pairs):
    return sorted((pairs.root / "reference").iterdir())


def test_a_damaged_and_a_foreign_cache_are_refused(pairs_of, folder):
    records = list(thanks(12, 0))
    trained(pairs := pairs_of(records), folder, reference="cached")
    (cache,) = folders(pairs)
    right = (cache / "train").read_bytes()
    (cache / "train").write_bytes(right[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match=rf"{cache.name} are damaged"):
        trained(pairs_of(records), folder, reference="cached")
    (cache / "seal.json").unlink()
    values = np.frombuffer(right, np.float32) - 2
    (cache / "train").write_bytes(values.tobytes())
    seal_folder(cache)
    with pytest.raises(UserError, match=rf"{cache.name} are not what model.backbone gives now"):
        trained(pairs_of(records), folder, reference="cached")


def test_another_weight_template_or_length_has_a_cache_of_its_own(pairs_of, folder, tmp_path):
    records = list(thanks(12, 0))
    trained(pairs := pairs_of(records), folder, reference="cached")
    trained(pairs_of(records), folder, reference="cached")
    assert len(folders(pairs)) == 1
    trained(pairs_of(records, seq_len=256), folder, reference="cached")
    assert len(folders(pairs)) == 2
    from datamodules.templates.choice import find_template

    other = tmp_path / "other.jinja"
    other.write_text(find_template(pairs.tokenizer, "chatml").replace("<|im_start|>", "<|im_start|> ", 1))
    trained(pairs_of(records, template=str(other)), folder, reference="cached")
    assert len(folders(pairs)) == 3
    network = Backbone(path=str(folder)).build()
    with torch.no_grad():  # one bit of one number
        weight = network.model.layers[1].mlp.up_proj.weight.view(torch.int32)
        weight[3, 5] ^= 1
    save_model_folder(network, None, tmp_path / "changed")
    trained(pairs_of(records), tmp_path / "changed", reference="cached")
    assert len(folders(pairs)) == 4


def test_a_killed_build_goes_on_where_it_was(pairs_of, folder, monkeypatch):
    records, settings = list(thanks(40, 0)), {"seq_len": 192}
    fill, computed = ReferenceCache._fill, []

    def counting(after):
        def filled(self, part, logprobs):
            def counted(batch):
                if len(computed) == after:
                    raise KeyboardInterrupt
                computed.append(part.name)
                return logprobs(batch)

            fill(self, part, counted)

        return filled

    monkeypatch.setattr(ReferenceCache, "_fill", counting(3))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trained(pairs_of(records, **settings), folder, reference="cached")
    monkeypatch.setattr(ReferenceCache, "_fill", counting(10**9))
    again = trained(pairs_of(records, **settings), folder, reference="cached")
    num_rows = len(again.trainer.datamodule.in_order("train"))
    assert num_rows > 4 and len(computed) == num_rows
    straight = trained(pairs_of(records, **settings), folder)
    for name, weight in straight.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), weight), name


def test_losses_without_a_reference_have_nothing_to_keep():
    module = module_of("simpo", reference="cached")
    with pytest.raises(UserError, match="kind=simpo has no reference"):
        module.check()


def test_one_bit_and_another_order_change_the_key():
    weights = {"a": torch.randn(7, 3), "b": torch.randn(5).bfloat16(), "c": torch.zeros(0)}
    key = content_key(weights)
    assert content_key(dict(reversed(weights.items()))) == key
    other = {name: value.clone() for name, value in weights.items()}
    other["b"].view(torch.int16)[4] ^= 1
    assert content_key(other) != key
    swapped = {**weights, "a": weights["a"].flip(0)}
    assert content_key(swapped) != key
