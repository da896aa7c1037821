"""What counts as a sample's final answer, and which answer wins."""

from __future__ import annotations

import pytest

from minicpm.cli.vote import final_answer, vote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"2 + 3 = 5, so \boxed{5}. I checked it 7 times.", "5"),
        (r"\boxed{1}, no: \boxed{\text{about } 1{,}200}", r"\text{about } 1{,}200"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{12 \text{ cm}}", "12"),
        (r"never closed \boxed{12, so 7", "7"),
        ("The answer is **72** apples.\nThat took 3 steps.", "72"),
        ("the answer is 3, the answer is 4\n5", "4"),
        ("Answer: (B)\nbecause of 1 and 2", "b"),
        ("Long thought\n#### 1,200", "1200"),
        ("答案是 12 只。\n一共 35 只", "12"),
        ("答案：丙", "丙"),
        ("答案为\n23", "23"),
        ("First 3, then 4 apples.", "4"),
        ("x = -5", "-5"),
        ("5-3=2", "2"),
        ("−0.50", "-0.5"),
        ("1200.0", "1200"),
        ("007", "7"),
        ("-0", "0"),
        ("１２", "12"),
        ("1" * 50, "1" * 50),
        ("He thinks.\n\n**Paris.**\n", "paris"),
        ("  PARIS ", "paris"),
        ("", ""),
        ("\n...\n", ""),
    ],
)
def test_the_final_answer_of_a_text(text: str, expected: str):
    assert final_answer(text) == expected


def test_the_most_frequent_answer_wins_whatever_stands_around_it():
    outcome = vote(["It is 71.", "Answer: 72", "72 in all", "so \\boxed{72}", "?"])
    assert (outcome.winner, outcome.answer) == (1, "72")
    assert outcome.counts == (("72", 3), ("71", 1), ("", 1))
    assert str(outcome) == "3 of 5 samples: 72; 1: 71; 1: no answer"


def test_among_equals_the_answer_given_first_wins():
    assert vote(["b", "a", "a", "b"]).winner == 0


def test_no_answer_wins_only_where_there_is_no_other():
    assert vote(["", "", "Paris"]).answer == "paris"
    assert str(vote(["", ""])) == "2 of 2 samples: no answer"
