"""Multiple choice: which letter a completion settles on."""

import pytest

from llm_lightning.errors import UserError
from llm_lightning.rewards import RightOption
from llm_lightning.rewards.right_option import chosen_letter


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"), (" b ", "B"), ("(B)", "B"), ("B. dog", "B"), ("B) dog", "B"), ("**B**", "B"), ("B: dog", "B"),
        ("The answer is B.", "B"), ("The correct answer is (B), since A is wrong.", "B"), ("Answer: B", "B"),
        ("First the answer is A. No, wait: the answer is C.", "C"), (r"A is wrong. So \boxed{C}.", "C"),
        (r"\boxed{\text{D}}", "D"), ("La respuesta correcta es C.", "C"), ("La opción correcta es la B", "B"),
        ("final answer: **D**", "D"), ("A dog barks.", None), ("I do not know.", None), ("", None),
        ("The answer is a dog", None), ("Answer: A's are wrong", None), ("An answer", None),
    ],
)  # fmt: skip
def test_the_letter_that_is_settled_on(completion, letter):
    assert chosen_letter(completion) == letter


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "B. dog", "B)", 1])
def test_the_right_letter_is_rewarded(answer):
    columns = {"answer": [answer] * 3, "options": [["cat", "dog"]] * 3}
    assert RightOption()(["q"] * 3, ["B", "The answer is A.", "dog"], columns) == [1.0, 0.0, 0.0]
    assert RightOption().check_record({"answer": answer}) is None


@pytest.mark.parametrize("answer", ["dog", "", None, 40, -1, True, ["B"], 1.0, "12"])
def test_an_answer_without_a_letter_is_found_in_the_data(answer):
    assert "neither a letter nor a place" in RightOption().check_record({"answer": answer})
    with pytest.raises(ValueError, match="neither a letter"):
        RightOption()(["q"], ["B"], {"answer": [answer]})
    with pytest.raises(UserError, match="the data has the columns other"):
        RightOption()(["q"], ["B"], {"other": [answer]})
