import random

import numpy as np
import pytest

from datamodules.storage.near_duplicates import NUM_BANDS, normalized, resembling, signature

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("st", "rn", "ll", "x")]


def sentence(g, count=40):
    return g.choices(WORDS, k=count)


def test_spelling_and_layout_change_nothing():
    assert (signature("¿Cómo  estás,\nhoy?") == signature("¿CÓMO ESTÁS HOY")).all()
    assert normalized(" A-b\tC_d! ") == "a b c d"


def test_similar_texts_meet_and_others_do_not():
    g = random.Random(0)
    met = {1: 0, 20: 0}
    for _ in range(200):
        words = sentence(g)
        for changed in met:
            other = list(words)
            for place in g.sample(range(40), changed):
                other[place] = g.choice(WORDS)
            met[changed] += bool((signature(" ".join(words)) == signature(" ".join(other))).any())
    assert met[1] > 180 and met[20] == 0
    strangers = [signature(" ".join(sentence(g))) for _ in range(200)]
    assert not any((a == b).any() for a, b in zip(strangers[::2], strangers[1::2], strict=True))


@pytest.mark.parametrize("text", ["", "a", "¿?", "日本語"])
def test_short_texts(text):
    assert signature(text).shape == (NUM_BANDS,)


def test_what_is_held_out_resembles_nothing_left_even_by_way_of_others():
    bands = np.arange(6 * NUM_BANDS, dtype=np.uint64).reshape(NUM_BANDS, 6)
    bands[3, 1] = bands[3, 0]  # 1 is like 0, which trains
    bands[7, 2] = bands[7, 1]  # 2 is like 1
    held_out = np.array([False, True, True, True, False, False])
    assert resembling(bands.__getitem__, held_out).tolist() == [False, True, True, False, False, False]
