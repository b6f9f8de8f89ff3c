"""One record asks with the same tokens in fine-tuning, reward modelling and reinforcement learning."""

import json

import pytest

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule
from datamodules.serving.pairs import Pairs
from tests.datamodules.chat_tokenizers import chat_tokenizer

# As ChatML, with the tools before the first turn.
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, ASSISTANT, SYSTEM = ({"role": role, "content": f"{role} says"} for role in ("user", "assistant", "system"))
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
HISTORY = [["Who are you?", "A fox."], ["Where?", "In the wood."]]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
RESULT = {"role": "tool", "content": "3"}
DIALOG = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "¿Y 🫀?"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}, {"from": "human", "value": "Then?"}]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: And then?\n\nAssistant:"

# What asks, and what it is read from.
ASKING = {
    "prompt": ({"prompt": "What is it?"}, "prompt"),
    "prompt with a system": ({"system": "Be brief.", "prompt": "What is it?"}, "prompt system"),
    "prompt with a system_prompt": ({"system_prompt": "Be brief.", "prompt": "What is it?"}, "prompt system_prompt"),
    "prompt with tools": ({"prompt": "Add 1 and 2", "tools": TOOLS}, "prompt tools"),
    "prompt with tools as JSON": ({"prompt": "Add 1 and 2", "tools": json.dumps(TOOLS)}, "prompt tools"),
    "prompt with a history": ({"prompt": "And now?", "history": HISTORY}, "prompt history"),
    "prompt with a context": ({"prompt": "Who?", "context": "A smith lives here."}, "prompt context"),
    "prompt with an input": ({"prompt": "Translate.", "input": "el herrero"}, "prompt input"),
    "transcript": ({"prompt": TRANSCRIPT}, "prompt"),
    "words like a transcript's": ({"prompt": "Human: or not?"}, "prompt"),
    "prompt of messages": ({"prompt": DIALOG}, "prompt"),
    "prompt of messages with a system": ({"prompt": DIALOG[1:], "system": "Be brief.", "tools": TOOLS}, "x"),
    "question": ({"question": "Who?"}, "question"),
    "question with a context": ({"question": "Who?", "context": "A smith lives here."}, "question context"),
    "question with a passage": ({"question": "Who?", "passage": "A smith lives here."}, "question passage"),
    "question with all": (
        {"system": "Be brief.", "question": "Who?", "context": "A smith.", "history": HISTORY, "tools": TOOLS},
        "question history context system tools",
    ),
    "instruction": ({"instruction": "Add."}, "instruction"),
    "instruction with an input": ({"instruction": "Add.", "input": "1 2"}, "instruction input"),
    "instruction with a context": ({"instruction": "Add.", "context": "1 2"}, "instruction context"),
    "instruction with both": ({"instruction": "Add.", "input": "1 2", "context": "base 3"}, "x"),
    "instruction with all": (
        {"instruction": "Add.", "input": "1 2", "history": HISTORY, "system": "Be brief.", "tools": TOOLS},
        "instruction history input system tools",
    ),
    "task in its input": ({"instruction": "", "input": "1 2"}, "input"),
    "input": ({"input": "1 2"}, "input"),
    "input with a context": ({"input": "1 2", "context": "base 3", "system": "Be brief."}, "input context system"),
}  # fmt: skip
ANSWERS = {"prompt": "completion", "question": "answer", "instruction": "output", "input": "output"}
MESSAGES = {
    "messages": {"messages": DIALOG},
    "messages with a system": {"messages": [USER], "system": "Be brief."},
    "messages with tools": {"messages": [USER, CALL, RESULT], "tools": TOOLS},
    "sharegpt": {"conversations": SHAREGPT},
    "sharegpt with all": {"conversations": SHAREGPT, "system": "Be brief.", "tools": TOOLS},
}


@pytest.fixture
def prompts(tmp_path):
    """The ids and the text of the only record's prompt, as a DataModule sees it."""
    chat_tokenizer("smollm2", CHATML).save_pretrained(tmp_path / "tokenizer")

    def build(kind, record, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(record) + "\n")
        defaults = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache"), "val_share": 0.0}
        data = kind(**{"path": str(path)} | defaults | settings)
        data.prepare_data()
        data.setup("fit")
        return data

    def of(kind, record, **settings):
        data = build(kind, record, **settings)
        if kind is PreferenceDataModule:
            pair = Pairs(data._train)[0]
            # What both answers begin with includes what they begin with in common.
            return [*pair.prompt.tolist(), *pair.chosen.tolist()]
        return data.example_prompts(1)[0]

    of.build = build
    return of


@pytest.mark.parametrize("name", ASKING)
def test_a_text_asks_the_same_in_all_stages(prompts, name):
    record, made_of = ASKING[name]
    field = next(field for field in ("prompt", "question", "instruction", "input") if field in record)
    tuned = prompts(InstructionDataModule, {**record, ANSWERS[field]: "The answer."})
    assert prompts(PromptDataModule, record) == tuned
    assert prompts(PromptDataModule, {**record, ANSWERS[field]: "The answer.", "id": 3}) == tuned
    pair = {**record, "chosen": "The answer.", "rejected": "None."}
    assert prompts(PreferenceDataModule, pair)[: len(tuned)] == tuned
    assert prompts(PromptDataModule, pair) == tuned
    if field in ("prompt", "instruction"):
        labelled = {**record, "output_1": "None.", "output_2": "The answer.", "label": 2}
        assert prompts(PreferenceDataModule, labelled)[: len(tuned)] == tuned
        assert prompts(PromptDataModule, labelled) == tuned
    data = prompts.build(PromptDataModule, record)
    if made_of != "x":
        assert f"from column{'s' if ' ' in made_of else ''} {made_of.replace(' ', ', ')}" in data.preview(1)[0]
    # Nothing that asks is left out: each text of the record is in the prompt.
    text = data.tokenizer.decode(tuned)
    for value in (value for value in record.values() if isinstance(value, str)):
        assert name == "transcript" or "JSON" in name or value in text
    assert ("add" in text) == ("tools" in record) and all(a in text for pair in record.get("history", []) for a in pair)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_ask_the_same_in_all_stages(prompts, name):
    record = MESSAGES[name]
    (field,) = {"messages", "conversations"} & record.keys()
    answer = (
        {"from": "gpt", "value": "The answer."} if field == "conversations" else {**ASSISTANT, "content": "The answer."}
    )
    other = {key: "None." if value == "The answer." else value for key, value in answer.items()}
    whole = {**record, field: [*record[field], answer]}
    tuned = prompts(InstructionDataModule, whole)
    assert prompts(PromptDataModule, record) == prompts(PromptDataModule, whole) == tuned
    for pair in ({**record, "chosen": answer, "rejected": other}, {**whole, "chosen": answer, "rejected": other}):
        assert prompts(PreferenceDataModule, pair)[: len(tuned)] == tuned
        assert prompts(PromptDataModule, pair) == tuned
    both = {"chosen": whole[field], "rejected": [*record[field], other]}
    both |= {key: value for key, value in record.items() if key in ("system", "tools")}
    assert prompts(PreferenceDataModule, both)[: len(tuned)] == tuned
    assert prompts(PromptDataModule, both) == tuned


def test_the_task_of_self_instruct_asks_with_its_first_instance(prompts):
    record = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "9"}]}
    tuned = prompts(InstructionDataModule, {**record, "system": "Be brief."})
    assert prompts(PromptDataModule, {**record, "system": "Be brief."}) == tuned
    assert tuned == prompts(PromptDataModule, {"instruction": "Add.", "input": "1 2", "system": "Be brief."})


def test_records_of_a_set_may_ask_in_other_columns_than_its_first(prompts, tmp_path):
    records = [
        {"system": "Answer in Dutch.", "prompt": "What is 2+2?"},
        {"system": "Answer in Dutch.", "messages": [USER, ASSISTANT]},
        {"tools": TOOLS, "prompt": [USER]},
        {"instruction": "Add.", "input": "1 2", "history": [["q", "a"]]},
        {"prompt": [SYSTEM]},
        {"question": "What is 1+1?", "context": "Use base 2."},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = prompts.build(PromptDataModule, {}, path=str(tmp_path / "all.jsonl"))
    asked = [data._train[number].ids.tolist() for number in range(len(records))]
    assert asked == [prompts(PromptDataModule, record) for record in records]


def test_what_has_no_place_in_a_plain_text_is_refused(prompts):
    assert (
        prompts.build(PromptDataModule, {"question": "Who?", "context": "A smith."}, chat=False)._train[0].said
        == "Who?\nA smith."
    )
    for record, said in (
        (
            {"prompt": "Who?", "system": "Be brief."},
            "its column 'system' has no place in a plain text: leave out chat=false",
        ),
        ({"prompt": "Who?", "tools": TOOLS}, "its column 'tools' has no place"),
        ({"question": "Who?", "history": HISTORY}, "its column 'history' has no place"),
        ({"messages": [USER]}, "it is a conversation: leave out chat=false"),
    ):
        with pytest.raises(DataError, match=f"data.jsonl:1: {said}"):
            prompts.build(PromptDataModule, record, chat=False)


def test_rewards_are_given_the_text_or_all_messages(prompts):
    def said(record):
        return prompts.build(PromptDataModule, record)._train[0].said

    assert said({"prompt": "Who?", "tools": TOOLS}) == "Who?"
    assert said({"question": "Who?", "context": "A smith."}) == "Who?\nA smith."
    assert said({"prompt": "user says", "system": "system says"}) == [SYSTEM, USER]
    assert said({"instruction": "user says", "history": [["q", "a"]]})[-1] == USER
    assert said({"messages": [USER]}) == [USER]
    data = prompts.build(PromptDataModule, {"question": "Who?", "context": "A smith.", "answer": 3})
    assert data._train[0].columns == {"context": "A smith.", "answer": 3}


MAPPED = {
    "alpaca": ({"instruction": "input"}, {"input": "What is 1?", "output": "One."}),
    "dolly": ({"instruction": "context"}, {"context": "What is 1?", "response": "One."}),
    "system": ({"system": "context"}, {"question": "What is 1?", "context": "Be brief.", "answer": "One."}),
    "answer": ({"answer": "input"}, {"question": "What is 1?", "input": "One."}),
    "reasoning": ({"reasoning": "context"}, {"prompt": "What is 1?", "context": "One is one.", "completion": "One."}),
    "question": ({"question": "passage", "answer": "input"}, {"passage": "What is 1?", "input": "One."}),
    "by a usual name": ({"response": "context", "question": "input"}, {"input": "What is 1?", "context": "One."}),
}


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_column_serves_nothing_else(prompts, name):
    columns, record = MAPPED[name]
    data = prompts.build(InstructionDataModule, record, columns=columns)
    whole = data.tokenizer.decode(data._train[0][1][0].tokens[:])
    assert all(whole.count(value) == 1 for value in record.values())
    assert prompts(PromptDataModule, record, columns=columns) == data.example_prompts(1)[0]


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        ({"instruction": "input"}, {"input": "What is 1?", "chosen": "One.", "rejected": "Two."}),
        ({"prompt": "context"}, {"context": "What is 1?", "chosen": "One.", "rejected": "Two."}),
        ({"question": "frage", "chosen": "input"}, {"frage": "What is 1?", "input": "One.", "rejected": "Two."}),
        (
            {"question": "frage", "response_j": "gut", "rejected": "context"},
            {"frage": "What is 1?", "gut": "One.", "context": "Two."},
        ),
        (
            {"question": "frage", "chosen": "gut", "rejected": "schlecht"},
            {"frage": "What is 1?", "gut": "One.", "schlecht": "Two."},
        ),
        ({"output_1": "input"}, {"instruction": "What is 1?", "input": "One.", "output_2": "Two.", "label": 1}),
    ],
)
def test_a_mapped_column_of_pairs_serves_nothing_else(prompts, columns, record):
    data = prompts.build(PreferenceDataModule, record, columns=columns)
    pair = Pairs(data._train)[0]
    for answer, said in ((pair.chosen, "One."), (pair.rejected, "Two.")):
        text = data.tokenizer.decode([*pair.prompt, *answer])
        assert [turn.split("\n")[-1] for turn in text.split("<|im_end|>\n")] == ["What is 1?", said, ""]
    asked = prompts.build(PromptDataModule, record, columns=columns)
    assert asked._train[0].said == "What is 1?"
