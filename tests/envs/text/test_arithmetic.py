"""Arithmetic tasks: right solutions, demonstrations wrong as often as they say, graders that are not fooled."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re

import numpy as np
import pytest

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs.text import (
    ModularSums,
    MultiDigitAddition,
    MultiDigitMultiplication,
    Problem,
    TextTask,
    WordProblems,
)
from hpcrl.errors import InputError

TASKS = [
    ModularSums(seed=3),
    ModularSums(seed=3, num_terms=8, max_term=9, modulus=10),
    MultiDigitAddition(seed=3),
    MultiDigitAddition(seed=3, num_terms=4, min_digits=1, max_digits=12),
    MultiDigitMultiplication(seed=3),
    MultiDigitMultiplication(seed=3, multiplicand_digits=7, multiplier_digits=5),
    WordProblems(seed=3),
    WordProblems(seed=3, min_steps=1, max_steps=12, max_number=500),
]


def by_name(task: object) -> str:
    return type(task).__name__


each_task = pytest.mark.parametrize("task", TASKS, ids=by_name)


def value_of(expression: str) -> int:
    """An independent calculator: whole numbers, one kind of sign at a time."""
    assert re.fullmatch(r"[-+*0-9]+", expression)
    return eval(expression)


@each_task
def test_solutions_are_right_and_add_up(task):
    for index in range(200):
        problem = task.problem(index)
        solution = problem.columns["solution"]
        assert task.grade(problem, solution)
        assert set(task.grade_steps(problem, solution)) == {1.0}
        lines = [solution[start:end] for start, end in task.steps(solution)]
        assert "".join(lines) == solution
        assert solution.endswith(f"{task.answer_mark}{problem.columns['answer']}")
        for line in lines[:-1]:
            if "=" in line:
                left, right = line.removesuffix(task.step_end).split("=")
                assert value_of(left) == int(right)


def test_answers_by_an_independent_way():
    for index in range(300):
        problem = ModularSums(seed=1).problem(index)
        assert int(problem.columns["answer"]) == sum(map(int, problem.prompt[:-1])) % 7
        sums = [sum(map(int, problem.prompt[:k])) % 7 for k in range(2, 5)]
        assert re.findall(r"[bcd](\d);", problem.columns["solution"]) == [str(value) for value in sums]
        for task in (MultiDigitAddition(seed=1), MultiDigitMultiplication(seed=1)):
            problem = task.problem(index)
            assert value_of(problem.prompt.removesuffix("=")) == int(problem.columns["answer"])


def test_stories_mean_their_numbers():
    """Reads the stories as a reader would, sentence by sentence."""
    rules = [
        (r"has (\d+) \w+\.$", lambda total, n: n),
        (r"(?:finds (\d+) more|A friend gives \w+ (\d+) \w+)\.$", lambda total, n: total + n),
        (r"(?:loses (\d+) of them|gives (\d+) of the \w+ away)\.$", lambda total, n: total - n),
        (r"(?:gets|are) (\d+) times as many", lambda total, n: total * n),
        (r"(?:buys|come) (\d+) (?:bags|boxes)\D+(\d+)", lambda total, n, m: total + n * m),
    ]
    for index in range(500):
        problem = WordProblems(seed=2).problem(index)
        *sentences, question = re.split(r"(?<=\.) ", problem.prompt)
        assert question.endswith("have now?\n")
        total = 0
        for sentence in sentences:
            (found,) = [(match, rule) for pattern, rule in rules if (match := re.search(pattern, sentence))]
            total = found[1](total, *(int(group) for group in found[0].groups() if group))
        assert total == int(problem.columns["answer"])
        assert 2 <= len(problem.columns["solution"].splitlines()) - 1 <= 4


@each_task
def test_a_problem_depends_on_its_index_alone(task):
    there = [task.problem(index) for index in range(20)]
    back = [pickle.loads(pickle.dumps(task)).problem(index) for index in reversed(range(20))]
    assert there == back[::-1]
    assert task.problem(2**32 - 1) != there[0]
    assert dataclasses.replace(task, seed=4).problem(0) != there[0]
    assert from_plain(to_plain(task)) == task
    assert task.size is None
    typed: TextTask = task
    assert typed.problem(0) == there[0]


@each_task
def test_the_alphabet_holds_every_character(task):
    noisy = dataclasses.replace(task, wrong_step=0.5, repeated_step=0.5)
    seen = set()
    for index in range(600):
        problem = noisy.problem(index)
        seen |= {*problem.prompt, *problem.columns["solution"], *problem.columns["completion"]}
    assert seen <= set(task.alphabet)
    assert list(task.alphabet) == sorted(set(task.alphabet))
    if isinstance(task, ModularSums):
        assert seen == set(task.alphabet)


def question_key(problem: Problem) -> tuple:
    """What makes two problems the same: numbers and signs; the order of terms and factors does not matter."""
    if problem.prompt.endswith("="):
        body = problem.prompt[:-1]
        return tuple(sorted(re.split(r"[+*]", body))) if re.search(r"[+*]", body) else (body,)
    return (problem.columns["solution"],)


@pytest.mark.parametrize(
    "task",
    [
        ModularSums(),
        MultiDigitAddition(min_digits=1, max_digits=2),
        MultiDigitMultiplication(multiplier_digits=1),
        WordProblems(min_steps=1, max_steps=2, max_number=6),
    ],
    ids=by_name,
)
def test_no_problem_is_in_both_splits_whatever_the_seeds(task):
    train = {question_key(dataclasses.replace(task, seed=1).problem(index)) for index in range(2500)}
    held_out = dataclasses.replace(task, seed=2, split="test")
    test = [question_key(held_out.problem(index)) for index in range(300)]
    assert not train & set(test)
    assert len(set(test)) > 20


def test_the_split_has_the_share_it_says():
    every = {"".join(map(str, terms)) + "=" for terms in itertools.product(range(1, 7), repeat=4)}
    train = {ModularSums().problem(index).prompt for index in range(12_000)}
    test = {ModularSums(split="test").problem(index).prompt for index in range(2_000)}
    assert train | test == every
    assert not train & test
    assert 0.07 < len(test) / len(every) < 0.13


@each_task
def test_demonstrations_are_wrong_and_repeat_as_often_as_they_say(task):
    noisy = dataclasses.replace(task, wrong_step=0.12, repeated_step=0.2)
    steps, wrong_first, repeats, right_answers, clean = 0, 0, 0, 0, 0
    for index in range(1500):
        problem = noisy.problem(index)
        assert problem.columns["solution"] == task.problem(index).columns["solution"]
        demonstration = problem.columns["completion"]
        written = [demonstration[start:end] for start, end in noisy.steps(demonstration)]
        unique = [step for step, _ in itertools.groupby(written)]
        expected = [problem.columns["solution"][start:end] for start, end in noisy.steps(problem.columns["solution"])]
        steps += len(expected) - 1
        repeats += len(written) - len(unique)
        wrong_first += unique[0] != expected[0]
        right_answers += noisy.grade(problem, demonstration)
        clean += demonstration == problem.columns["solution"]
        assert task.problem(index).columns["completion"] == problem.columns["solution"]
    assert abs(wrong_first / 1500 - 0.12) < 0.04
    # Neighbouring steps that are equal by themselves look like repeats, and two pairs of them like three.
    assert 0.17 < repeats / steps < 0.26
    mean_steps = steps / 1500
    assert abs(right_answers / 1500 - 0.88**mean_steps) < 0.12
    assert clean < right_answers


def test_wrong_and_repeated_steps_of_modular_sums():
    task = ModularSums()
    problem = Problem("3516=", {"answer": "1", "solution": "b1;c2;d1;#1"})
    right_is_repeatable = {"repeats_are_right": True}
    for response, success, scores, flawed in [
        ("b1;c2;d1;#1", True, [1, 1, 1, 1], [1, 1, 1, 1]),
        ("b1;b1;c2;d1;#1", True, [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]),
        ("b1;c2;c2;c2;d1;#1", True, [1, 1, 0, 0, 1, 1], [1] * 6),
        ("b1;b1;b1;b1;", False, [1, 0, 0, 0], [1, 1, 1, 1]),
        ("b1;c2;b1;d1;#1", True, [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        ("b2;c3;d2;#2", False, [0, 0, 0, 0], [0, 0, 0, 0]),
        ("#1", True, [0], [0]),
        ("b1;c2;d1;#1;", False, [1, 1, 1, 0], [1, 1, 1, 0]),
        ("b1;c2;d1;#1#1", False, [1, 1, 1, 0], [1, 1, 1, 0]),
        ("b1;c2;d1;#1x", False, [1, 1, 1, 0], [1, 1, 1, 0]),
        ("b1;c2;d", False, [1, 1], [1, 1]),
        (";;;", False, [0, 0, 0], [0, 0, 0]),
        ("", False, [], []),
        ("garbage", False, [], []),
        ("#0#1#2#3#4#5#6", False, [0], [0]),
        ("b1;c2;d1;#", False, [1, 1, 1, 0], [1, 1, 1, 0]),
        ("b1;c2;d1;#01", False, [1, 1, 1, 0], [1, 1, 1, 0]),
    ]:
        assert task.grade(problem, response) is success, response
        assert task.grade_steps(problem, response) == scores, response
        assert task.grade_steps(problem, response, **right_is_repeatable) == flawed, response
        assert len(task.steps(response)) == len(scores)


def test_noise_of_process_scores_is_counted_by_the_text():
    task, scores = ModularSums(), []
    for index in range(400):
        problem = task.problem(index)
        solution = problem.columns["solution"]
        noisy = task.grade_steps(problem, solution, right=0.9, wrong=0.1, noise=0.05)
        assert noisy == task.grade_steps(problem, solution, right=0.9, wrong=0.1, noise=0.05)
        assert noisy[:2] == task.grade_steps(problem, solution[:7], right=0.9, wrong=0.1, noise=0.05)[:2]
        scores += noisy
    assert abs(np.mean(scores) - 0.9) < 0.005
    assert abs(np.std(scores) - 0.05) < 0.004


def test_terms_and_factors_may_change_places():
    task = MultiDigitAddition()
    problem = Problem("47+85=", {"answer": "132", "solution": "7+5=12;4+8+1=13;#132"})
    assert task.grade_steps(problem, "5+7=12;1+4+8=13;#132") == [1, 1, 1]
    assert task.grade_steps(problem, "7+5=12;4+8+1=12;#132") == [1, 0, 0]


def test_a_problem_of_another_task_is_refused():
    with pytest.raises(InputError, match="want the column 'solution', as the task made it, given columns answer"):
        ModularSums().grade_steps(Problem("1=", {"answer": "1"}), "#1")


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        (ModularSums, {"modulus": 11}, "ModularSums: modulus: want 2 to 10, given 11"),
        (ModularSums, {"num_terms": 1}, "num_terms"),
        (ModularSums, {"max_term": 10}, "max_term"),
        (ModularSums, {"wrong_step": 1.5}, "wrong_step: want a probability, given 1.5"),
        (ModularSums, {"repeated_step": -0.1}, "repeated_step"),
        (ModularSums, {"split": "dev"}, "split: want 'train' or 'test', given 'dev'"),
        (ModularSums, {"test_share": 0.0}, "test_share"),
        (ModularSums, {"seed": -1}, "seed"),
        (MultiDigitAddition, {"min_digits": 4}, r"min_digits: want 1 to max_digits \(= 3\), given 4"),
        (MultiDigitAddition, {"max_digits": 101}, "max_digits"),
        (MultiDigitAddition, {"num_terms": 10}, "num_terms"),
        (MultiDigitMultiplication, {"multiplier_digits": 0}, "multiplier_digits"),
        (MultiDigitMultiplication, {"multiplicand_digits": 101}, "multiplicand_digits"),
        (WordProblems, {"min_steps": 5}, "min_steps"),
        (WordProblems, {"max_steps": 13}, "max_steps"),
        (WordProblems, {"max_number": 1}, "max_number"),
    ],
)
def test_knobs_out_of_range_are_refused(kind, knobs, message):
    with pytest.raises(InputError, match=message):
        kind(**knobs)


@pytest.mark.parametrize("index", [-1, 2**32, 0.5])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(InputError, match=r"want an index, a whole number in \[0, 2\*\*32\), given"):
        ModularSums().problem(index)


def test_a_split_without_problems_is_refused():
    # One problem alone, "11=": it is in one split and not in the other.
    tasks = [ModularSums(split=split, num_terms=2, max_term=1) for split in ("train", "test")]
    with pytest.raises(InputError, match="found none in 10000 attempts; make the problems harder"):
        [task.problem(0) for task in tasks]
