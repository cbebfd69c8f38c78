"""Every limit is kept, named when broken, and refused when nothing can keep it."""

from dataclasses import fields

import pytest

from data.curation.filters import Filters
from data.curation.scores import Scores
from parallel.errors import InputError

SCORES = Scores(motion=2.0, sharpness=300.0, brightness=100.0, black=0.25, text=0.04, phash="0" * 16)
FACTS = {"seconds": 4.0, "height": 360, "width": 640, "scores": SCORES, "caption": "a red car", "near": None}


@pytest.mark.parametrize(
    ("rule", "kept", "broken", "said"),
    [
        ("min_seconds", 4.0, 4.0001, "lasts 4 s, less than 4.0001"),
        ("max_seconds", 4.0, 3.5, "lasts 4 s, more than 3.5"),
        ("min_side", 360, 1080, "shorter side of 360 pixels, less than 1080"),
        ("min_aspect", 16 / 9, 2.0, "1.78 times as wide as high, less than 2"),
        ("max_aspect", 16 / 9, 1.5, "1.78 times as wide as high, more than 1.5"),
        ("min_motion", 2.0, 3.0, "motion 2, less than 3"),
        ("max_motion", 2.0, 1.0, "motion 2, more than 1"),
        ("min_sharpness", 300.0, 301.0, "sharpness 300, less than 301"),
        ("min_brightness", 100.0, 101.0, "brightness 100, less than 101"),
        ("max_black", 0.25, 0.2, "0.25 of its frames are black, more than 0.2"),
        ("max_text", 0.04, 0.03, "0.04 of its picture is text, more than 0.03"),
        ("min_caption_chars", 9, 10, "caption of 9 characters, less than 10"),
        ("max_caption_chars", 9, 8, "caption of 9 characters, more than 8"),
    ],
)
def test_each_limit(rule, kept, broken, said):
    assert Filters(**{rule: kept}).reasons(**FACTS) == []
    assert Filters(**{rule: broken}).reasons(**FACTS) == [(rule, said)]


def test_several_reasons_none_and_all_rules_tested():
    assert Filters().reasons(**FACTS) == []
    found = Filters(min_seconds=5, min_motion=3, max_text=0.05, near_duplicates=4).reasons(**{**FACTS, "near": "abc"})
    assert [rule for rule, _ in found] == ["min_seconds", "min_motion", "near_duplicates"]
    assert "abc" in found[-1][1]
    assert Filters().reasons(**{**FACTS, "near": "abc"}) == []  # nobody asked
    tested = {case[0] for case in test_each_limit.pytestmark[0].args[1]}
    assert tested == {field.name for field in fields(Filters)} - {"near_duplicates"}


def test_what_a_sample_does_not_have_is_not_held_against_it():
    strict = Filters(min_seconds=99, min_motion=99, min_side=999, min_sharpness=999, min_caption_chars=99)
    image = strict.reasons(**{**FACTS, "seconds": None})
    assert [rule for rule, _ in image] == ["min_side", "min_sharpness", "min_caption_chars"]
    text = strict.reasons(seconds=None, height=None, width=None, scores=None, caption="words")
    assert [rule for rule, _ in text] == ["min_caption_chars"]
    with pytest.raises(AssertionError, match=r"without scores has limits on \['motion', 'sharpness'\]"):
        strict.reasons(**{**FACTS, "scores": None})


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"min_seconds": -1}, "min_seconds is 0 or more"),
        ({"max_text": 1.5}, "max_text is 0 to 1"),
        ({"max_black": float("nan")}, "max_black is 0 to 1"),
        ({"min_brightness": 300}, "min_brightness is 0 to 255"),
        ({"min_seconds": 5, "max_seconds": 4}, "min_seconds is at most max_seconds"),
        ({"min_aspect": 2, "max_aspect": 1}, "min_aspect is at most max_aspect"),
        ({"near_duplicates": 40}, "near_duplicates is a number of bits, 0 to 31"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, rule):
    with pytest.raises(InputError) as caught:
        Filters(**limits).check()
    assert caught.value.rule == rule
    Filters(min_seconds=4, max_seconds=4, max_black=0, near_duplicates=0).check()
