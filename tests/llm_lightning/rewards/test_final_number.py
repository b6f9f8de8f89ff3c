"""One number in the ways that people and models write it, in English and Spanish."""

# ruff: noqa: RUF001 (signs that look like others are what this is about)

import time

import pytest

from llm_lightning.rewards import FinalAnswer
from llm_lightning.rewards.final_number import final_number

WRITTEN = {
    # signs: hyphen, true minus, dashes; before and behind the currency; in words
    "-$18": -18, "−18": -18, "–18 €": -18, "$-18": -18, "-\\$18": -18, "- $18": -18, "es −18,50 €": -18.5, "-€18": -18,
    "= - 18": -18, "#### −$1,250.50": -1250.5, "#### -10": -10, "\\boxed{-\\$18}": -18, "$\\text{-}18$": -18,
    "the total is minus 18": -18, "es menos 5": -5, "al menos 5": 5, "+18": 18, "**-18**": -18, "-.5": -0.5,
    "The answer is - 5.": -5, "\\boxed{-\\,\\$18}": -18, "\\frac{1}{-2}": -0.5, "2-\\frac{-1}{-2}=\\frac{-3}{-2}": 1.5,
    "USD -18": -18, "\\boxed{-\\pounds 18}": -18, "`-18`": -18, "<answer>-18</answer>": -18, '{"answer": -18}': -18,
    # what looks like a sign and is none
    "10-3=7": 7, "from 18-20": 20, "- 18 apples": 18, "\n- 3 eggs\n- 4 pears": 4, "20 – 18 = 2": 2,
    # thousands and decimals
    "1,234,567.5": 1234567.5, "1.234.567,5": 1234567.5, "1 234 567,5": 1234567.5, "1\u202f234\u202f567.5": 1234567.5,
    "1\u00a0000": 1000, "1'000.50 CHF": 1000.5, "1’000": 1000, "1_000": 1000, "₹12,34,567": 1234567, "$80 000": 80000,
    "1.000,50": 1000.5, "12,50 euros": 12.5, "0,125": 0.125, "0.125": 0.125, "3,14159": 3.14159, "1234.567": 1234.567,
    "1,000": 1000, "18.": 18, "18,-": 18, "007": 7, "18.00": 18, ".5": 0.5, "１８": 18, "١٨": 18, "1,000.": 1000,
    # LaTeX and Markdown
    "\\boxed{1{,}000}": 1000, "\\boxed{1,\\!000}": 1000, "1\\,234\\,567": 1234567, "\\boxed{0{,}5}": 0.5,
    "\\boxed{\\boxed{5}}": 5, "\\boxed{\\text{18}}": 18, "\\boxed{18\\text{ apples}}": 18, "\\boxed{x = 5}": 5,
    "\\boxed 5": 5, "\\boxed{{5}}": 5, "$\\boxed{18}$ of 20": 18, "\\(18\\)": 18, "\\[x = -18\\]": -18, "*18*": 18,
    "\\boxed{90^\\circ}": 90, "\\boxed{18\\text{ cm}^2}": 18, "\\boxed{\\mathbf{1{,}234}}": 1234, "\\boxed{18.}": 18,
    # fractions, percent, powers of ten, words
    "\\frac{3}{4}": 0.75, "-\\dfrac{3}{4}": -0.75, "\\boxed{\\frac{-3}{4}}": -0.75, "\\tfrac34": 0.75, "3 / 4": 0.75,
    "2\\frac{1}{2}": 2.5, "-1½": -1.5, "2 3/4 cups": 2.75, "¾": 0.75, "1.5 \\times 10^{3}": 1500, "1,5·10⁻³": 0.0015,
    "6e3": 6000, "1.5E-3": 0.0015, "10^6": 1e6, "2^{10}": 1024, "2,5 millones": 2.5e6, "3 mil": 3000, "$5k": 5000,
    "3 mil millones": 3e9, "2 billion": 2e9, "2 billones": 2e12, "\\boxed{5\\text{ million}}": 5e6, "5 million": 5e6,
    # units and currencies
    "\\SI{18}{km}": 18, "\\boxed{\\num{1000}}": 1000, "18\\euro": 18, "\\boxed{1.000{,}50}": 1000.5,
    "1\\,000{,}5": 1000.5,
    "18 m/s^2": 18, "18 m²": 18, "18 km/h": 18, "18kg": 18, "USD 18": 18, "R$ 1.000,00": 1000, "-5 °C": -5, "18€": 18,
    # which number of a text
    "He has 3 and 4.\n#### 72": 72, "#### 5 apples and 6 pears": 5, "#### none, though 5 came": 5, "1 #### 2 #### 3": 3,
    "#### Step 3: add\n4+5=9": 9, "#### Final Answer\n**18**": 18, "\\boxed{7} and then #### 8": 8, "答案是18。": 18,
    "#### 8 \\boxed{7}": 7, "2+2 = 4.": 4, "Total: $1,234 + $1 = $1,235 of 9,000?": 9000, "first 3, then -4": -4,
}  # fmt: skip

NOT_ONE_PLAIN_NUMBER = [
    "", "none", "\\sqrt{2}", "\\boxed{2\\sqrt{3}}", "the answer is √2", "\\frac{\\pi}{2}", "\\boxed{2, 3}", "(1,2)",
    "\\boxed{5!}", "\\boxed{x>5}", "\\boxed{5x+3}", "\\boxed{18-2}", "x^2", "\\boxed{\\{1,2\\}}", "\\boxed{3 \\pm 1}",
    "\\boxed{\\frac{\\boxed{3}}{4}}", "\\boxed{18", "18 \\boxed{}", "GPT-4", "12/05/2024", "It is 3:30", "1.2.3",
    "1,2,3", "5/0", "1e999999999", "9" * 5000, "9^9999", "\\boxed{3\\text{ or }4}", "-\\infty", "NaN", "0xFF",
    "|-5|", "12 34", "1 234 5678", "18 = x", "-(-5)", "5 ± 1", "≥ 5", "7/7/2020", "\\boxed{-(5)}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), WRITTEN.items())
def test_each_way_of_writing(text, number):
    found = final_number(text)
    assert found is not None
    assert float(found.values[0]) == number
    assert len(found.values) == 1


@pytest.mark.parametrize("text", NOT_ONE_PLAIN_NUMBER)
def test_what_is_not_one_plain_number(text):
    assert final_number(text) is None


def is_right(completion, answer, **options):
    return FinalAnswer(**options)([""], [completion], {"answer": [answer]}) == [1.0]


def test_a_number_that_can_be_read_in_two_ways():
    assert is_right("Son 1.000.", "1,000")  # MGSM: English answers to Spanish questions
    assert is_right("It is 1.000", "1")
    assert not is_right("It is 1,000", "1")
    assert is_right("Son 1.000", "1.000", decimal_mark=",")
    assert not is_right("Son 1.000", "1", decimal_mark=",")
    assert is_right("Son 2,125", "2.1250", decimal_mark=",")
    assert not is_right("It is 1.000", "1000", decimal_mark=".")


def test_percent_may_stand_for_either():
    assert is_right("50%", "50")
    assert is_right("50 por ciento", "0.5")
    assert is_right("0,5", "50 %")
    assert is_right("50\\%", "50%")
    assert not is_right("50%", "0.5%")
    assert not is_right("0.5", "50")


def test_numbers_are_compared_exactly():
    assert not is_right("12345678901234567", "12345678901234568")
    assert is_right("0.1", 0.1)
    assert is_right("1/3", "2/6")
    assert not is_right("0.333", "1/3")
    assert is_right("1.234 exactly", 1.234)


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "1,",
        "1 ",
        "-",
        "\\frac{",
        "\\text{",
        "$",
        "1/",
        "1:",
        "^{",
        "sqrt(",
        "1½",
        "5 mil ",
        "\\frac  ",
    ],
)
def test_no_text_takes_long(piece):
    started = time.process_time()
    final_number(piece * 5000)
    final_number("\\boxed{" + piece * 5000 + "}")
    assert time.process_time() - started < 2
