"""LoRA on a network whose weights bitsandbytes or torchao hold in few bits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.description import describe
from llm_lightning.models.export import save_model_folder
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.models.peft_methods import METHODS, SaveAfterEpoch, fit, module

IDS = torch.arange(1, 13)[None]


def nf4():
    pytest.importorskip("bitsandbytes", reason="pip install 'llm-lightning[qlora]'")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def int8():
    torchao = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128}
    save_model_folder(Backbone(config=tiny_config(**shape)).build(), None, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("quantization", [nf4, int8])
def test_it_trains_resumes_saves_and_merges(base, tmp_path, quantization):
    path = tmp_path / "half.ckpt"
    run = fit(module(base, METHODS["lora"](), quantization=quantization()), callbacks=[SaveAfterEpoch(path, epoch=1)])
    assert sum(run.losses[-3:]) < 0.97 * sum(run.losses[:3])
    assert run.model.get_base_model().is_quantized
    total = sum(p.numel() for p in Backbone(path=str(base)).build().parameters())
    adapter = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert f"{(total + adapter) / 1e6:,.2f} M parameters" in describe(run.model, "32-true")

    checkpoint = torch.load(path, weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    resumed = fit(module(base, METHODS["lora"](), quantization=quantization()), ckpt_path=path)
    assert resumed.losses == run.losses[6:]

    expected = run.model.eval()(IDS).logits
    save_model_folder(run.model, None, tmp_path / "adapter", adapter=run.adapter)
    from peft import PeftModel

    again = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization())
    # Left in training mode, where bitsandbytes does not round to bfloat16 on CPUs that have it.
    again = PeftModel.from_pretrained(again, tmp_path / "adapter").train()
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-4, atol=1e-4)

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    merged = Backbone(path=str(tmp_path / "adapter")).build().eval()
    torch.testing.assert_close(merged(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", [nf4, int8])
def test_evaluation_changes_nothing(base, quantization):
    """bitsandbytes repacks weights for a CPU kernel at the first evaluation, which changed every loss after it."""
    network = Backbone(path=str(base), quantization=quantization()).build()
    before = network.train()(IDS).logits
    with torch.no_grad():
        assert torch.equal(network.eval()(IDS).logits, before)
    assert torch.equal(network.train()(IDS).logits, before)
