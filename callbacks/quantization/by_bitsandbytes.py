"""The scheme of bitsandbytes."""

from typing import Any

from callbacks.quantization.request import Request


def nf4(request: Request) -> None:
    """4-bit weights on the quantiles of a normal distribution, in groups of 64 (arXiv:2305.14314).

    With 8-bit scales (`double_quant`): without them, bitsandbytes 0.50 spoils a network that is saved after it was
    evaluated, on CPUs with bfloat16 (AVX512-BF16).
    """
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": request.dtype,
        "llm_int8_skip_modules": list(request.kept),
    }
    config = BitsAndBytesConfig(load_in_4bit=True, **settings | dict(request.options))
    request.load(quantization_config=config).save_pretrained(request.output)
