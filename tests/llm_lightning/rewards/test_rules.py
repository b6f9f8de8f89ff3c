"""The rules on cases written by hand, and on the data sets that they are for."""

import json
from pathlib import Path

import pytest

from llm_lightning.errors import UserError
from llm_lightning.rewards import FinalAnswer, InstructionsFollowed, Length, Pattern, RecordCheck, Reward
from llm_lightning.rewards.final_number import final_number
from llm_lightning.rewards.instructions import CHECKS

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_final_answer():
    columns = {"answer": ["2 + 2\n#### 4", "18", "1,000"], "other": [0, 0, 0]}
    assert FinalAnswer()([""] * 3, ["it is 4.0", "#### 17", "1000 dollars"], columns) == [1, 0, 1]
    assert FinalAnswer()([""], ["no number at all"], {"answer": ["4"]}) == [0]
    with pytest.raises(UserError, match=r"FinalAnswer\.column='result': the data has the columns answer"):
        FinalAnswer("result")([""], ["4"], {"answer": ["4"]})
    with pytest.raises(ValueError, match="'answer' holds no number, or more than one plain number: 'four'"):
        FinalAnswer()([""], ["4"], {"answer": ["four"]})


def test_records_that_cannot_be_judged_are_found_without_an_answer():
    check = RecordCheck({"correct": Reward(FinalAnswer()), "short": Reward(Length(4))})
    assert check({"answer": "#### 4"}) is None
    assert "FinalAnswer.column='answer': the record has the columns solution" in check({"solution": "4"})
    for answer in ("four", None, True, ["4"], "2\\sqrt{3}", float("nan"), "(1, 2)"):
        assert "'answer' holds no number" in check({"answer": answer}), answer
    with pytest.warns(UserWarning, match=r"right answer '1\.500' is taken for 1\.5\. Where 1500 is meant"):
        assert check({"answer": "1.500"}) is None
    assert RecordCheck({"correct": Reward(FinalAnswer("solution"))}).key != check.key
    assert RecordCheck({"correct": Reward(FinalAnswer())}).key == check.key

    follows = RecordCheck({"followed": Reward(InstructionsFollowed())})
    assert follows({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}) is None
    assert "there is no check for 'no:such'" in follows({"instruction_id_list": ["no:such"], "kwargs": [{}]})
    assert "has 1 entries, kwargs has 0" in follows({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []})
    missing = {"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}
    assert "keywords:existence with {}: KeyError: 'keywords'" in follows(missing)
    assert "needs the column 'kwargs'" in follows({"instruction_id_list": []})


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared data")
def test_final_answers_of_gsm8k_and_mgsm():
    records = [json.loads(line) for line in (DATA / "gsm8k/test.jsonl").read_text().splitlines()]
    solutions = [record["answer"] for record in records]
    assert len(solutions) == 1319
    assert FinalAnswer()([""] * 1319, solutions, {"answer": solutions}) == [1.0] * 1319
    numbers = [float(final_number(s).values[0]) for s in solutions]
    wrong = [f"The answer is {n + 1:,}." for n in numbers]
    assert FinalAnswer()([""] * 1319, wrong, {"answer": solutions}) == [0.0] * 1319
    rows = [line.split("\t") for line in (DATA / "mgsm/es.tsv").read_text().splitlines() if line]
    assert (
        FinalAnswer()([""] * 250, [f"Son {n} en total." for _, n in rows], {"answer": [n for _, n in rows]})
        == [1] * 250
    )


def test_pattern():
    assert Pattern("ye[s]", ignore_case=True)([], ["YES", "no", "oh yes\n"], {}) == [1, 0, 1]
    assert Pattern("yes", whole=True)([], ["yes", "yes!"], {}) == [1, 0]
    assert Pattern("^a.b$")([], ["a\nb"], {}) == [1]
    with pytest.raises(UserError, match=r"Pattern.pattern='\(' is no regular expression"):
        Pattern("(")


def test_length():
    assert Length(4)([], ["a b c d", "a b", "", "a b c d e f", "a " * 20], {}) == [1, 0.5, 0, 0.5, 0]
    assert Length(4, "characters")([], ["abcd", "abc"], {}) == [1, 0.75]
    with pytest.raises(UserError, match=r"Length\.target=0"):
        Length(0)


CASES = [
    ("punctuation:no_comma", {}, "no comma", "a, b"),
    ("keywords:existence", {"keywords": ["apple", "pear"]}, "Apple and PEAR.", "apples and pear"),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "badly", "so bad!"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a b"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a b", "a b a"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Only one.", "One. Two!"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "Well.\n\nSo be it.", "So.\n\nWell."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP.S. y", "x"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [place]", "[name]"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a*"),
    ("detectable_format:multiple_sections",
     {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1 a SECTION 2 b", "SECTION 1"),
    ("detectable_format:title", {}, "<<A title>> text", "A title"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "Say hi\nhi", "hi"),
    ("startend:end_checker", {"end_phrase": "The end."}, "x. The end.", "The end. x"),
    ("startend:quotation", {}, '"quoted"', "bare"),
    ("change_case:english_lowercase", {}, "all small", "Not all"),
    ("change_case:english_capital", {}, "ALL BIG", "NOT all"),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG dog", "A dog"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_each_instruction(name, arguments, right, wrong):
    columns = {"instruction_id_list": [[name]] * 2, "kwargs": [[arguments]] * 2}
    assert InstructionsFollowed()([""] * 2, [right, wrong], columns) == [1, 0]


def test_every_check_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_shares_strictness_emptiness_and_unknown_instructions():
    both = {"instruction_id_list": [["punctuation:no_comma", "startend:quotation"]], "kwargs": [[{}, None]]}
    assert InstructionsFollowed()([""], ["no comma"], both) == [0.5]
    assert InstructionsFollowed(strict=True)([""], ["no comma"], both) == [0]
    assert InstructionsFollowed()([""], [" "], both) == [0]
    unknown = {"instruction_id_list": [["language:response_language", "punctuation:no_comma"]], "kwargs": [[{}, {}]]}
    with pytest.raises(UserError, match=r"no check for 'language:response_language'.*Leave the others out by `skip`"):
        InstructionsFollowed()([""], ["x"], unknown)
    assert InstructionsFollowed(skip=["language:response_language"])([""], ["x"], unknown) == [1]
    with pytest.raises(UserError, match="needs the column 'kwargs'"):
        InstructionsFollowed()([""], ["x"], {"instruction_id_list": [[]]})


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared data")
def test_all_of_ifeval_can_be_judged():
    records = [json.loads(line) for line in (DATA / "ifeval/input_data.jsonl").read_text().splitlines()]
    columns = {name: [record[name] for record in records] for name in ("instruction_id_list", "kwargs")}
    reward = InstructionsFollowed(skip=["language:response_language"])
    shares = reward([""] * len(records), [record["prompt"] for record in records], columns)
    assert 0.1 < sum(shares) / len(shares) < 0.9
