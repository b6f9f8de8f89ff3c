"""`llm-lightning evaluate` of pruned and quantized folders: the scores are those of the network that became them."""

import json
import math
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from callbacks.pruning import NM, Structured, Taylor
from callbacks.pruning.removal import remove_units
from callbacks.quantization import SCHEMES
from callbacks.quantization.request import Request, load_network
from llm_lightning.commands.evaluate import run
from llm_lightning.evaluation.results import read_evaluation
from llm_lightning.models.export import save_model_folder
from tests.callbacks.pruning.test_removal import masked
from tests.callbacks.quantized import needs
from tests.llm_lightning.evaluation.small_model import WRITTEN, questions, save_small_model, write_rows, write_task

NEW_TOKENS = 8
CLOSE = 0.1
"""Logits that processors with other kernels for integers may put in another order."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    return save_small_model(tmp_path_factory.mktemp("dense") / "model", **sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "test.jsonl", questions(5))
    (folder / "text.txt").write_text("Tell me a story of the sea and of the red ship that went there.\n" * 5)
    settings = {"generation_kwargs": {"max_gen_toks": NEW_TOKENS, "until": [], "do_sample": False}}
    write_task(folder, "written", folder / "test.jsonl", **WRITTEN | settings)
    return folder


def evaluated(folder: Path, data: Path, output: Path) -> tuple[float, list[str]]:
    """Bits per byte of the text, and the answers to the questions."""
    tasks = ["--tasks", f"local_text,{data}/written.yaml", "--data", f"local_text={data}/text.txt"]
    assert run([str(folder), *tasks, "--output", str(output), "--dtype", "float32"]) == 0
    (bits,) = [
        score["value"]
        for score in read_evaluation(output).tasks["local_text"]["scores"]
        if score["metric"] == "bits_per_byte"
    ]
    rows = parquet.read_table(output / "items.parquet").to_pylist()
    return bits, [row["answer"] for row in rows if row["task"] == "written"]


@torch.no_grad()
def by_transformers(network, tokenizer, data: Path) -> tuple[float, list[str]]:
    """The same, one text and one token after the other."""
    network.eval()
    text = (data / "text.txt").read_text()
    ids = tokenizer(text, return_tensors="pt").input_ids
    before = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids[:, :-1]], 1)
    logprobs = network(before).logits.float().log_softmax(-1).gather(2, ids[..., None])
    answers = []
    for row in questions(5):
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt").input_ids
        written = prompt
        for _ in range(NEW_TOKENS):
            best = network(written).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < CLOSE:
                break  # rounding may decide otherwise
            written = torch.cat([written, best.indices[None, :1]], 1)
            if written[0, -1] == tokenizer.eos_token_id:
                break
        answers.append(tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True).rstrip("\ufffd"))
    return -float(logprobs.sum()) / len(text.encode()) / math.log(2), answers


def assert_same(found, expected, dense) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert begin_with(found[1], expected[1]) and sum(map(bool, expected[1])) >= 3
    assert found[0] != pytest.approx(dense[0], rel=1e-3) or not begin_with(found[1], dense[1])  # what the test is worth


def begin_with(answers: list[str], begins: list[str]) -> bool:
    return all(answer.startswith(begin) for answer, begin in zip(answers, begins, strict=True))


@pytest.mark.parametrize(
    ("structure", "sizes"),
    [
        (Structured(channels=0.25, kv_groups=0.5), (96, 2, 4)),
        (Structured(layers=0.5), (128, 4, 2)),
        (NM(2, 4), (128, 4, 4)),
    ],
    ids=["fewer channels and heads", "fewer layers", "2:4"],
)
def test_a_pruned_folder_answers_as_the_masked_network(model, data, tmp_path, structure, sizes):
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    dense = by_transformers(network, tokenizer, data)
    masks = masked(network, structure, Taylor())
    expected = by_transformers(network, tokenizer, data)
    if isinstance(structure, Structured):
        remove_units(network, structure, masks.kept)
    save_model_folder(network, tokenizer, tmp_path / "pruned")
    assert_same(evaluated(tmp_path / "pruned", data, tmp_path / "out"), expected, dense)
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    found = [config[name] for name in ("intermediate_size", "num_attention_heads", "num_hidden_layers")]
    assert found == list(sizes)


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "float8", "int4", "nf4", "int1"])
def test_a_quantized_folder_answers_as_transformers_reads_it(model, data, tmp_path, name):
    needs(name)
    scheme, output = SCHEMES[name], tmp_path / "quantized"
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [torch.randint(3, 400, (64,)) for _ in range(4)] if scheme.calibrated else []
    request = Request(
        model, output, scheme.bits, 64 if scheme.grouped else None, bool(scheme.symmetric), ["lm_head"],
        torch.device("cpu"), torch.float32, rows, options={"iters": 2} if name == "int4" else {},
    )  # fmt: skip
    scheme.quantize(request)
    request.finish()
    network = load_network(output, torch.device("cpu"))
    dense = by_transformers(AutoModelForCausalLM.from_pretrained(model), tokenizer, data)
    assert_same(evaluated(output, data, tmp_path / "out"), by_transformers(network, tokenizer, data), dense)
