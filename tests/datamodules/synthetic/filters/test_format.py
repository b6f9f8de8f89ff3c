import pytest

from datamodules.synthetic.filters.format import fault_of

FAULTS = {
    "empty answer": ["", " \n"],
    "refusal": [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I am unable to do so.",
        "As an AI language model, I have no opinions.",
        "Well, as an AI, I cannot taste.",
        "I cannot provide that.",
        "Lo siento, pero no puedo hacerlo.",
        "Como modelo de lenguaje, no tengo cuerpo.",
    ],
    "open code fence": ["```python\nprint(1)", "Here:\n```\na\n```\nand\n```"],
    "placeholder": ["Dear [Your Name],", "Hello {{ name }}!", "Yours, <your name>", "Lorem ipsum dolor sit amet."],
    "repetition": ["the cat sat " * 20, "no " * 30, "Well" + "!" * 40, "a b c d e f g h. " + "I like it. " * 10],
    "unfinished": ["We need eggs,", "It is one of the", "The answer is (", "Vimos a los"],
}
FINE = [
    "42",
    "Paris",
    "- eggs\n- milk",
    "x = {'a': 1}",
    "A man wrote: 'I am sorry, but I can't come.'",
    "Sorry is a word of five letters.",
    "Robots behave as an AI would in the film.\nNobody cares.",
    "```python\nprint('{{ name }}')\n```\nprints a template.",
    "Vue writes `{{ name }}`.",
    "She sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "| a | b |\n|---|---|\n| 1 | 2 |\n" + "-" * 60,
    "1000000000000000000000000000000000000000",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
]


@pytest.mark.parametrize(("fault", "answer"), [(fault, answer) for fault, many in FAULTS.items() for answer in many])
def test_faults(fault, answer):
    assert fault_of("A question", answer) == fault


@pytest.mark.parametrize("answer", FINE)
def test_good_answers(answer):
    assert fault_of("A question", answer) == ""


def test_an_empty_prompt():
    assert fault_of(" \n", "An answer.") == "empty prompt"
