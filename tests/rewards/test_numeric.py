"""Numbers and boxed expressions as answers."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data

from hpcrl.envs.text import Gsm8k, Gsm8kSolutions
from hpcrl.rewards import BoxedAnswer, NumericAnswer, RewardError, checked_scores
from hpcrl.rewards.numeric import boxed_answer, marked_answer, number_of, same_expression


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("-42.", -42),
        ("+1,234,567", 1234567),
        ("$ 1,200.50", Fraction(2401, 2)),
        ("-$5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("3.", 3),
        (".5", Fraction(1, 2)),
        ("007", 7),
        ("1e3", 1000),
        ("1.5E-1", Fraction(3, 20)),
        ("3/4", Fraction(3, 4)),
        ("1 000", 1000),
        ("0.1" + "0" * 300, Fraction(1, 10)),
        ("", None),
        (".", None),
        ("-", None),
        ("1.2.3", None),
        ("5 eggs", None),
        ("five", None),
        ("3/0", None),
        ("1/2/3", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("0x10", None),
        ("1e9999999", None),
        ("9" * 5000, None),
    ],
)
def test_numbers(text, number):
    assert number_of(text) == number


@given(st.fractions(max_denominator=10**6), st.booleans())
def test_a_number_written_down_is_read_again(value, spaced):
    text = f"{value.numerator}/{value.denominator}" if value.denominator > 1 else f"{value.numerator:,}"
    assert number_of(f" {text} " if spaced else text) == value


@given(st.text())
def test_no_text_breaks_the_verifiers(text):
    for response in (text, f"#### {text}", f"\\boxed{{{text}}}", f"\\boxed {text}"):
        scores = checked_scores(NumericAnswer(), [""], [response], {"answer": ["1"]})
        assert scores.values[0] in (0, 1)
        assert checked_scores(BoxedAnswer(), [""], [response], {"answer": ["1"]}).values[0] in (0, 1)


@pytest.mark.parametrize("make", [lambda n: "#### " + "9" * n, lambda n: "\\boxed{" * n, lambda n: "#### " + "," * n])
def test_long_texts_take_no_long_time(make):
    began = time.perf_counter()
    for verifier in (NumericAnswer(), BoxedAnswer()):
        verifier.verify([""], [make(100_000)], {"answer": ["1"]})
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("6*7=42\n#### 42", "right"),
        ("A: 42", "right"),
        ("A: $42.00.", "right"),
        ("#### 41\n#### 42", "right"),
        ("#### 42\n#### 41", "wrong"),
        ("#### 42\nThat is all.", "right"),
        ("A: 41 #### 42", "right"),
        ("#### 42 A: 41", "wrong"),
        ("#### 41 or 42", "wrong"),
        ("#### forty-two", "wrong"),
        ("####", "wrong"),
        ("42", "no_answer"),
        ("1 2 3 41 42", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_numeric_answers(response, outcome):
    assert NumericAnswer().verify([""], [response], {"answer": ["42"]}) == [outcome]
    assert NumericAnswer().verify([""], [response], {"answer": [42]}) == [outcome]


def test_marks_and_columns_are_knobs():
    reward = NumericAnswer(column="gold", marks=("=>",), right=10, wrong=-1)
    scores = checked_scores(reward, ["", ""], ["=> 1,000", "#### 1000"], {"gold": ["1000", "1000"]})
    assert scores.values.tolist() == [10, -1]
    assert marked_answer("x => 3 ", ("=>",)) == "3"


@pytest.mark.parametrize(("gold", "said"), [("many", "'many'"), (None, "None"), (True, "True")])
def test_a_gold_answer_that_is_no_number_is_the_datas_fault(gold, said):
    with pytest.raises(RewardError, match=f"want a .*gold answer.*given {said} in row 1"):
        NumericAnswer().verify(["", ""], ["#### 1", "#### 1"], {"answer": ["1", gold]})


def test_a_missing_column_is_named():
    with pytest.raises(RewardError, match="reward NumericAnswer: want the column 'answer', given 'gold'"):
        NumericAnswer().verify([""], ["#### 1"], {"gold": ["1"]})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$ is it", "5"),
        (r"\boxed{{a}}", "{a}"),
        (r"\boxed{5", None),
        (r"\boxed", None),
        (r"\boxed5", None),
        ("5", None),
    ],
)
def test_boxed(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "spellings",
    [
        [r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}{2}", "1/2", ".5", "0.50", r"x=\frac 1 2", r"\frac12", "2/4"],
        ["1000", "1,000", r"1{,}000", r"\$1000", "1000.", "1000.00", r"1000\text{ cm}", r"1000 \mbox{ cm}^2"],
        ["(1,2)", "(1, 2)", r"\left(1,\, 2\right)", r"\left( 1, 2 \right)"],
        ["-3", "\N{MINUS SIGN}3", "k = -3"],
        [r"-\frac{1}{3}", r"\frac{-1}{3}", "-1/3"],
        [r"\sqrt3", r"\sqrt{3}"],
        ["30", r"30^\circ", r"30^{\circ}"],
        ["50", r"50\%", "50%"],
        [r"\text{Monday}", "Monday"],
        ["x+1", "x + 1"],
    ],
)
def test_spellings_of_one_answer(spellings):
    for one in spellings:
        for other in spellings:
            assert same_expression(one, other), (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("1,2", "12"),
        ("(1,000)", "1000"),
        (r"\frac{1}{3}", "0.333"),
        ("", ""),
        ("10", "100"),
        ("1.01", "1.1"),
        ("100", "1"),
        ("x", "y"),
        ("a=b=c", "c"),
    ],
)
def test_different_answers(one, other):
    assert not same_expression(one, other)


def test_boxed_answers():
    responses = [r"\boxed{0.5}", r"\boxed{2}", "0.5", r"\boxed{2} or \boxed{1/2}"]
    scores = checked_scores(BoxedAnswer(), [""] * 4, responses, {"answer": [r"\frac12"] * 4})
    assert scores.values.tolist() == [1, 0, 0, 1]
    assert scores.outcomes == {"right": 2, "wrong": 1, "no_answer": 1}


# --- the labels of GSM8K's model solutions


def disagreements(task: Gsm8kSolutions) -> list[tuple]:
    rows = [task.problem(index).columns for index in range(task.size)]
    columns = {"answer": [row["answer"] for row in rows]}
    outcomes = NumericAnswer().verify([""] * len(rows), [row["completion"] for row in rows], columns)
    return [
        (row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if (outcome == "right") != row["is_correct"]
    ]


def test_labels_of_synthetic_solutions(tmp_path):
    import json

    labels = [
        ("A: 18", True),
        ("A: 18.00", True),
        ("A: $18", True),
        ("A: 18.", True),
        ("A: 1,8", True),
        ("A: 81", False),
    ]
    labels += [("18", False), ("A: eighteen", False), ("A: 18\nA: 19", False)]
    models = {f"m{n}": {"solution": text, "is_correct": label} for n, (text, label) in enumerate(labels)}
    path = tmp_path / "solutions.jsonl"
    path.write_text(json.dumps({"question": "q", "ground_truth": "A: 18", **models}))
    assert disagreements(Gsm8kSolutions(str(path))) == []


def test_all_labels_of_the_real_solutions():
    task = Gsm8kSolutions(shared_data("gsm8k/model-solutions-a.jsonl.gz"))
    assert disagreements(task) == []
    labels = [task.problem(index).columns["is_correct"] for index in range(task.size)]
    assert (len(labels), sum(labels)) == (2640, 1008)


def test_real_worked_answers_are_right():
    task = Gsm8k(shared_data("gsm8k/train.jsonl.gz"), stop=1000)
    rows = [task.problem(index).columns for index in range(task.size)]
    columns = {"answer": [row["answer"] for row in rows]}
    assert set(NumericAnswer().verify([""] * 1000, [row["completion"] for row in rows], columns)) == {"right"}
