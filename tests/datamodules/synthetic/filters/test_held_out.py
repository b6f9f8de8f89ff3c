"""What training must not see, and what seeds say already."""

import pytest

from datamodules.synthetic.filters import Decontamination, SeedSimilarity
from tests.datamodules.synthetic.records import candidates, funnel_of, ids, needs_extra

pytestmark = needs_extra

QUESTION = "A farmer has seventeen sheep and all but nine of them run away one night; how many sheep are left to him?"
ANSWER = "All but nine ran away, which means that exactly nine sheep stayed with the farmer that night. #### 9"
OTHER = ("What is the capital of France, and since when has it been that?", "Paris, with breaks, since the year 987.")
TEST = candidates((QUESTION, ANSWER), ("Name a colour.", "Blue."))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((QUESTION, "Nine."), "nearly a held-out prompt"),
        ((f"{OTHER[0]} Also: {QUESTION}", OTHER[1]), "contains a held-out text"),
        ((OTHER[0], f"I do not know. {ANSWER.upper()}"), "contains a held-out text"),
        ((QUESTION.replace("sheep", "goats").replace("farmer", "baker"), "Nine."), "nearly a held-out prompt"),
        (("Name a colour!", "Red."), "nearly a held-out prompt"),
    ],
)
def test_leaks_are_dropped(tmp_path, pair, reason):
    funnel = funnel_of(tmp_path, [Decontamination()], candidates(OTHER, pair), held_out=TEST)
    assert ids(funnel.kept()) == ["0"]
    assert funnel.stages[0].dropped == {reason: 1}


def test_a_rejected_answer_leaks_too(tmp_path):
    from dataclasses import replace

    pair = replace(candidates(OTHER)[0], rejected=ANSWER)
    assert funnel_of(tmp_path, [Decontamination()], [pair], held_out=TEST).num_kept == 0


def test_the_score_is_the_share_of_the_held_out_text(tmp_path):
    words = ANSWER.split()
    records = candidates((OTHER[0], " ".join(words[:14])), OTHER)
    scores = funnel_of(tmp_path, [Decontamination()], records, held_out=TEST).stages[0].scores
    # 14 words have 7 runs of eight; the answer's 19, its "####" not counted, have 11 or 12.
    assert scores.tolist() == pytest.approx([7 / (len(words) - 1 - 8 + 1), 0])


def test_nothing_is_held_out(tmp_path):
    assert funnel_of(tmp_path, [Decontamination(), SeedSimilarity()], TEST).num_kept == 2


def test_what_seeds_ask_is_dropped_whatever_is_answered(tmp_path):
    near = QUESTION.replace("seventeen", "eighteen").replace("nine", "ten")
    funnel = funnel_of(tmp_path, [SeedSimilarity()], candidates((near, "Ten."), OTHER), seeds=TEST)
    assert ids(funnel.kept()) == ["1"]
    assert funnel.stages[0].scores[0] == pytest.approx(20 / 22)
    assert funnel.stages[0].dropped == {"nearly a seed's prompt": 1}
