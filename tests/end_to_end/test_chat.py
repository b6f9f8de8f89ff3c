"""`llm-lightning chat`: through a pipe, with history, streaming, Ctrl-C, and mistakes."""

import io
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.inference.chat import Conversation
from llm_lightning.rollouts import LocalEngine
from llm_lightning.rollouts.sampling import Sampling

TEMPLATE = Path(__file__).parents[2] / "datamodules" / "templates" / "chatml.jinja"


@pytest.fixture
def model(folder, network, cache, monkeypatch):
    shutil.copytree(network, folder / "network")
    shutil.copy(TEMPLATE, folder / "network" / "chat_template.jinja")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    return "network"


@pytest.fixture
def chat(model, monkeypatch, capfd):
    def finish(lines, *args):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", model, *args])
        return code, *capfd.readouterr()

    return finish


def generated(messages, count):
    """Greedy, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("network"), AutoTokenizer.from_pretrained("network")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return tokenizer.decode(model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :], True)


def test_replies_through_a_pipe_are_those_of_transformers_and_know_what_was_said(chat):
    greedy = ("--temperature", "0", "--max_new_tokens", "7")
    code, output, error = chat(
        ["What is 1?", "", "And 2?", "/save talks/talk.jsonl"], *greedy, "--system_prompt", "Hm."
    )
    assert code == 0, error
    messages = [{"role": "system", "content": "Hm."}]
    for question in ("What is 1?", "And 2?"):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": generated(messages, 7)})
    assert output == "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    assert json.loads(Path("talks/talk.jsonl").read_text()) == {"messages": messages}
    code, again, _ = chat(["Other", "/system Hm.", "What is 1?", "/exit", "never asked"], *greedy)
    other = generated([{"role": "user", "content": "Other"}], 7)
    assert code == 0 and again == f"{other}\n{messages[2]['content']}\n"


def test_the_seed_decides_and_no_control_token_is_shown(chat):
    flags = ("--temperature", "1.5", "--seed")
    (code, one, error), same, other = (chat(["Hello"], *flags, seed) for seed in ("4", "4", "5"))
    assert code == 0, error
    assert one == same[1] != other[1] and one.strip()
    assert "<|im_" not in one


def test_a_reply_appears_while_it_is_written(model):
    pieces = []
    conversation = Conversation(LocalEngine(model, num_slots=1), Sampling(500, 1.0))
    turn = conversation.ask("What is 1?", pieces.append)
    assert "".join(pieces) == turn.text and len([piece for piece in pieces if piece]) > 1
    assert turn.seconds > 0 and turn.num_forgotten == 0


def test_the_oldest_turns_are_forgotten_where_there_is_no_room(model):
    engine = LocalEngine(model, num_slots=1)
    conversation = Conversation(engine, Sampling(16, 0.0), system_prompt="Short.")
    forgotten = [conversation.ask(f"Say more about {number}, please.", len).num_forgotten for number in range(30)]
    assert 2 in forgotten and forgotten[0] == 0
    assert engine.room([{"role": "system", "content": "Short."}, *conversation.messages]) >= 0
    with pytest.raises(UserError, match=r"This text takes all of the model's context of [0-9]+ tokens: write less"):
        conversation.ask("very " * 5000, len)
    assert conversation.ask("Again?", len).num_tokens > 0


def test_ctrl_c_ends_a_reply_and_keeps_what_was_written(model):
    engine = LocalEngine(model, num_slots=1)
    asked = [{"role": "user", "content": "What is 1?"}]
    whole = engine.reply(asked, Sampling(30, 0.0), (1,), len)

    def interrupt(tokens):
        if len(tokens) == 9:
            signal.raise_signal(signal.SIGINT)

    part = engine.reply(asked, Sampling(30, 0.0), (1,), interrupt)
    assert part.num_tokens == 9 and not part.is_finished and whole.text.startswith(part.text)
    assert engine.reply(asked, Sampling(30, 0.0), (1,), len) == whole

    conversation = Conversation(engine, Sampling(500, 1.0))
    turn = conversation.ask("What is 1?", lambda piece: signal.raise_signal(signal.SIGINT))
    assert conversation.messages[-1] == {"role": "assistant", "content": turn.text}
    assert conversation.ask("And 2?", len).num_tokens > 0


@pytest.mark.parametrize(
    ("lines", "args", "message"),
    [
        (["/sing"], (), "/sing: there are /save FILE, /system TEXT, /reset and /exit"),
        (["/save"], (), "/save: there are /save FILE"),
        ([], ("--temperature", "-1"), "chat.temperature=-1.0 must be at least 0"),
        ([], ("--tempreature", "1"), "tempreature"),
    ],
)
def test_mistakes(chat, lines, args, message):
    code, _, error = chat(lines, *args)
    assert code == 2 and message in error and "Traceback" not in error


def test_a_model_without_a_template_is_refused(chat):
    Path("network/chat_template.jinja").unlink()
    code, _, error = chat(["Hello"])
    assert code == 2 and "MODEL='network': its tokenizer has no chat template, so it cannot be asked" in error
