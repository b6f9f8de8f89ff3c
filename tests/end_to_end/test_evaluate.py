"""`llm-lightning evaluate`: results, answers that are kept, mistakes, two ranks."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from llm_lightning.commands.evaluate import default_output, group_environment, run
from llm_lightning.commands.report import run as report
from llm_lightning.evaluation.results import read_evaluation, read_items
from llm_lightning.measuring.statistics import wilson_interval
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.merging.adapter import merge_folder
from tests.llm_lightning.evaluation.small_model import WRITTEN, questions, save_small_model, write_rows, write_task


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("run") / "model" / "best")


@pytest.fixture
def data(tmp_path):
    write_rows(tmp_path / "test.jsonl", questions())
    write_rows(tmp_path / "train.jsonl", questions(4))
    (tmp_path / "text.txt").write_text("".join(f"Line {number} of a text.\n" for number in range(400)))
    write_task(tmp_path, "written", tmp_path / "test.jsonl", **WRITTEN)
    return tmp_path


def arguments(model, data, *more, output="out"):
    tasks = f"local_multiple_choice,local_text,{data}/written.yaml"
    return [
        str(model), "--tasks", tasks, "--data", f"local_multiple_choice={data}", "--data",
        f"local_text={data}/text.txt", "--num_fewshot", "2", "--output", str(data / output), *more,
    ]  # fmt: skip


def scores(folder: Path) -> dict[tuple[str, str], float]:
    evaluation = read_evaluation(folder)
    return {(name, each["metric"]): each["value"] for name, task in evaluation.tasks.items() for each in task["scores"]}


def test_it_writes_what_a_report_reads(model, data, capsys):
    assert run(arguments(model, data, "--system_prompt", "Be brief.")) == 0
    printed = capsys.readouterr().out
    assert "local_multiple_choice  acc" in printed
    assert " to " in printed
    evaluation = read_evaluation(data / "out")
    assert evaluation.command[:2] == ["llm-lightning", "evaluate"]
    assert evaluation.settings["num_fewshot"] == 2
    assert set(evaluation.tasks) == {"local_multiple_choice", "local_text", "written"}
    written = evaluation.tasks["written"]
    assert (written["num_items"], written["max_new_tokens"]) == (12, 40)
    assert 0 < written["truncated"] < 12
    assert written["first_prompt"].startswith("Be brief.")
    (choice, _) = evaluation.tasks["local_multiple_choice"]["scores"]
    assert choice["interval"] == "wilson"
    assert choice["low"] < choice["value"] < choice["high"]
    items = read_items(data / "out")
    assert len(items["local_multiple_choice", "acc", "none"].hashes) == 12
    assert items["local_multiple_choice", "acc", "none"].values.mean() == pytest.approx(choice["value"])
    rows = parquet.read_table(data / "out" / "items.parquet").to_pylist()
    assert {row["answer"] for row in rows if row["task"] == "local_multiple_choice"} <= set("ABCD")
    assert all(row["num_tokens"] > 0 for row in rows if row["task"] == "written")
    assert not list((data / "out").glob("answers-*"))


def test_an_adapter_is_read_with_its_network(model, data):
    torch.manual_seed(4)
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapter = Adapter(Backbone(path=str(model)).build(tokenizer), peft)
    save_model_folder(adapter.model, tokenizer, data / "adapter", adapter=adapter)
    merge_folder(data / "adapter", data / "merged")
    assert run(arguments(data / "adapter", data)) == 0
    assert run(arguments(data / "merged", data, output="merged-out")) == 0
    assert run(arguments(model, data, output="base-out")) == 0
    assert scores(data / "out") == pytest.approx(scores(data / "merged-out"), rel=1e-5)
    assert scores(data / "out") != pytest.approx(scores(data / "base-out"), rel=1e-2)


def test_a_quantized_folder_is_read_as_transformers_reads_it(model, data):
    torchao = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    network = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=torch.float32)
    network.save_pretrained(data / "quantized")
    AutoTokenizer.from_pretrained(model).save_pretrained(data / "quantized")
    assert run(arguments(data / "quantized", data)) == 0
    ids = AutoTokenizer.from_pretrained(model)((data / "text.txt").read_text()[:400], return_tensors="pt").input_ids
    (data / "text.txt").write_text((data / "text.txt").read_text()[:400])
    assert run(arguments(data / "quantized", data, output="short")) == 0
    bos = torch.tensor([[AutoTokenizer.from_pretrained(model).bos_token_id]])
    with torch.no_grad():
        logits = network.eval()(torch.cat([bos, ids[:, :-1]], 1)).logits.log_softmax(-1)
    bits = -float(logits.gather(2, ids[..., None]).sum()) / 400 / math.log(2)
    assert scores(data / "short")["local_text", "bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_items_that_stand_in_the_training_data_are_counted_and_left_out(model, data, capsys):
    rows = [
        row | {"question": f"{row['question']} Say it in the words that number {number} of the old song has."}
        for number, row in enumerate(questions())
    ]
    write_rows(data / "test.jsonl", rows)
    sets = data / "trained"
    sets.mkdir()
    copied = [{"messages": [{"role": "user", "content": f"Tell me: {rows[n]['question'].upper()}"}]} for n in (1, 4)]
    write_rows(sets / "train.jsonl", copied)
    (data / "more.txt").write_text(f"Whoever asks {rows[9]['question']} knows nothing.")
    asked = ("--contamination", str(sets), "--contamination", str(data / "more.txt"))
    assert run(arguments(model, data, *asked)) == 0
    printed = capsys.readouterr().out
    assert "contaminated  value without" in printed
    evaluation = read_evaluation(data / "out")
    rows = parquet.read_table(data / "out" / "items.parquet").to_pylist()
    for name in ("local_multiple_choice", "written"):
        task = evaluation.tasks[name]
        assert (task["contaminated"], task["too_short"], task["num_items"]) == (3, 0, 12)
        for score in task["scores"]:
            own = [row for row in rows if (row["task"], row["metric"]) == (name, score["metric"])]
            assert {row["item"] for row in own if row["contaminated"]} == {1, 4, 9}
            kept = [row["value"] for row in own if not row["contaminated"]]
            assert score["clean"]["num_items"] == len(kept) == 9
            assert score["clean"]["value"] == pytest.approx(sum(kept) / 9)
            low, high = wilson_interval(sum(kept), 9)
            assert (score["clean"]["low"], score["clean"]["high"]) == pytest.approx((low, high))
    text = evaluation.tasks["local_text"]
    assert (text["contaminated"], text["scores"][0]["clean"]) == (0, None)
    page = data / "report.html"
    assert report([str(data / "out"), "--output", str(page)]) == 0
    assert "25.0 %" in page.read_text()
    assert "without contaminated items" in page.read_text()
    assert run(arguments(model, data, "--contamination", "nowhere", output="other")) == 2
    assert "--contamination nowhere: path: 'nowhere' does not exist" in capsys.readouterr().err


def test_settings_about_speed_alone_change_nothing(model, data):
    assert run(arguments(model, data)) == 0
    assert run(arguments(model, data, "--row_tokens", "100", "--num_slots", "3", output="other")) == 0
    assert scores(data / "out") == pytest.approx(scores(data / "other"), rel=1e-5)


def test_it_goes_on_after_kill_9_and_asks_no_item_again(model, data):
    assert run(arguments(model, data, output="whole")) == 0
    command = [sys.executable, "-m", "llm_lightning", "evaluate", *arguments(model, data, "--num_slots", "1")]
    process = subprocess.Popen([*command, "--row_tokens", "64"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = data / "out" / "answers-0.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if kept.exists() and kept.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    former = [json.loads(line)[0] for line in kept.read_text().splitlines() if line.endswith("]")]
    assert len(former) > 3
    assert not (data / "out" / "results.json").exists()
    # What is known is not asked again: a planted answer is taken over as it is.
    lines = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("]")]
    planted = next((line for line in lines if isinstance(line[1], dict)), None)
    if planted is not None:
        planted[1]["text"] = "planted"
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(arguments(model, data)) == 0
    answers = parquet.read_table(data / "out" / "items.parquet").to_pylist()
    assert (planted is None) or "planted" in {row["answer"] for row in answers}
    assert scores(data / "out") == pytest.approx(scores(data / "whole"), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_split_the_items_and_count_each_once(model, data):
    assert run(arguments(model, data, output="alone")) == 0
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launched, "-m", "llm_lightning", "evaluate", *arguments(model, data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert scores(data / "out") == pytest.approx(scores(data / "alone"), rel=1e-5)
    one, two = (parquet.read_table(data / name / "items.parquet").to_pylist() for name in ("out", "alone"))
    assert [row["answer"] for row in one if row["task"] == "written"] == [
        row["answer"] for row in two if row["task"] == "written"
    ]
    assert done.stdout.count("95 % interval") == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (["--tasks", "local_gsm8"], "there is no task 'local_gsm8'.* Near it are local_gsm8k"),
        (["--tasks", "none.yaml"], "there is no file none.yaml"),
        (["--tasks", "broken.yaml"], "broken.yaml is no YAML"),
        (["--tasks", "wrong.yaml"], "wrong.yaml cannot be used.*nonsense"),
        (["--tasks", "column.yaml"], "does not fit its data|cannot be used.*stem"),
        (["--columns", "question"], "--columns question: give NAME=VALUE"),
        (["--columns", "question=stem", "--columns", "answer=no"], None),
        (["--data", "local_gsm8k=x"], "--data local_gsm8k: this task is not among those that are asked"),
        (["--limit", "0"], "limit=0.0"),
        (["--num_fewshot", "9"], "num_fewshot=9: the task local_multiple_choice has 4 examples"),
        (["--seq_len", "4000"], "seq_len=4000: the model's context has 512"),
        (["--max_new_tokens", "512"], "max_new_tokens=512 leaves no room"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_mistakes_in_words(model, data, capsys, monkeypatch, change, message):
    import re

    monkeypatch.chdir(data)
    (data / "broken.yaml").write_text("task: [\n")
    write_task(data, "wrong", data / "test.jsonl", **WRITTEN | {"output_type": "nonsense"})
    write_task(data, "column", data / "test.jsonl", **WRITTEN | {"doc_to_text": "{{stem}}"})
    given = arguments(model, data)
    if change[0] == "--tasks":
        given = [*given[:1], *change]
    code = run([*given, *(change if change[0] != "--tasks" else [])])
    if message is None:
        assert code == 0
        return
    assert code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (data / "out" / "results.json").exists()


def test_where_results_lie_if_nobody_says(model, tmp_path):
    assert default_output(str(model)) == model.parents[1] / "evaluation" / "best"
    other = tmp_path / "my_model"
    other.mkdir()
    assert default_output(str(other)) == tmp_path / "evaluation" / "my_model"
    assert default_output("owner/name") == Path("evaluation/name")


def test_processes_of_torchrun_and_slurm_are_seen():
    assert group_environment({}) is None
    assert group_environment({"WORLD_SIZE": "2", "RANK": "1"}) == {}
    assert group_environment({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
