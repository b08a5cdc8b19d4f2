"""What comes through the door of rewards, and what is refused there."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import numpy as np
import pytest

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs.text import ModularSums, WordProblems, columns_of
from hpcrl.errors import InputError
from hpcrl.rewards import FunctionReward, NumericAnswer, RewardError, TaskReward, checked_scores

ROWS = (["p", "q"], ["r", "ss"])


@dataclasses.dataclass(frozen=True)
class Answering:
    """A reward that answers with what it was given, or raises it."""

    answer: object

    def score(self, prompts, responses, columns):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", [[1, 2.5], (1, 2.5), np.array([1, 2.5], np.float32), [np.float64(1), 2.5], ["1", "2.5"]]
)
def test_numbers_come_through(answer):
    scores = checked_scores(Answering(answer), *ROWS, {})
    assert scores.values.tolist() == [1, 2.5]
    assert scores.values.dtype == np.float64
    assert scores.outcomes == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], r"reward Answering: want 2 numbers, one for each response, given shape \[1\]"),
        ([[1.0, 2.0]], r"given shape \[1, 2\]"),
        (3.0, r"given shape \[\]"),
        ([1.0, float("nan")], r"reward Answering: want finite numbers, given nan in row 11 \(1 such of 2\)"),
        ([float("inf"), float("-inf")], r"given inf in row 10 \(2 such of 2\)"),
        ([1.0, "many"], "reward Answering: want one number for each response, given 'many' in row 11"),
        ([None, 1.0], "want finite numbers, given nan in row 10|given None in row 10"),
        ([[1.0], [1.0, 2.0]], r"want one number for each response, given \[1.0\] in row 10"),
        ({"a": 1}, "given {'a': 1}"),
        (KeyError("gold"), "reward Answering: raised KeyError: 'gold' on rows 10 to 11"),
    ],
)
def test_anything_else_is_one_clear_error(answer, message):
    with pytest.raises(RewardError, match=message):
        checked_scores(Answering(answer), *ROWS, {}, first_row=10)


def test_interrupts_are_not_the_rewards():
    with pytest.raises(KeyboardInterrupt):
        checked_scores(Answering(KeyboardInterrupt()), *ROWS, {})


def test_lengths_must_agree():
    with pytest.raises(InputError, match=r"column answer: want length 2 \(= len\(responses\)\), given 1"):
        checked_scores(NumericAnswer(), *ROWS, {"answer": ["1"]})
    with pytest.raises(InputError, match="prompts: want length 2"):
        checked_scores(NumericAnswer(), ["p"], ROWS[1], {"answer": ["1", "1"]})


def test_no_rows():
    assert checked_scores(NumericAnswer(), [], [], {"answer": []}).values.shape == (0,)


# --- a user's function


def length(prompts, responses, columns):
    assert (type(prompts), type(responses), type(columns)) == (list, list, dict)
    return [len(response) * factor for response, factor in zip(responses, columns["factor"], strict=True)]


NOT_A_FUNCTION = 3


def test_a_function_by_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    reward = FunctionReward("my_rewards:length")
    assert checked_scores(reward, *ROWS, {"factor": (1, 10)}).values.tolist() == [1, 20]
    assert from_plain(to_plain(reward)) == reward
    assert pickle.loads(pickle.dumps(reward)) == reward
    with pytest.raises(InputError, match="my_rewards has no 'lenght'; did you mean 'length'"):
        FunctionReward("my_rewards:lenght").score(*ROWS, {})
    with pytest.raises(InputError, match=r"want a function, given int \(3\)"):
        FunctionReward("my_rewards:NOT_A_FUNCTION").score(*ROWS, {})
    with pytest.raises(RewardError, match="reward my_rewards:length: raised KeyError: 'factor' on rows 0 to 1"):
        checked_scores(reward, *ROWS, {})


def test_a_function_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, factor in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        body = "import dataclasses\n\n\n@dataclasses.dataclass\nclass Row:\n    text: str\n\n\n"
        body += (
            f"def score(prompts, responses, columns):\n    return [{factor} * len(Row(r).text) for r in responses]\n"
        )
        (tmp_path / name / "rewards.py").write_text(body)
    for name, expected in (("one", [1, 2]), ("two", [2, 4])):
        assert checked_scores(FunctionReward(f"{name}/rewards.py:score"), *ROWS, {}).values.tolist() == expected
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    with pytest.raises(InputError, match=r"importing broken\.py raised ModuleNotFoundError: No module named 'no_such"):
        FunctionReward("broken.py:score").score(*ROWS, {})
    with pytest.raises(InputError, match=r"want a Python file, absent\.py is not there"):
        FunctionReward("absent.py:score").score(*ROWS, {})


@pytest.mark.parametrize("name", ["", "module", "module:", ":function", "module:two words"])
def test_a_name_of_another_form(name):
    with pytest.raises(InputError, match=r"want 'module:function' or 'file\.py:function', given"):
        FunctionReward(name)


def test_a_module_that_is_not_there():
    with pytest.raises(InputError, match="want a module that can be imported, given 'no_such_module'"):
        FunctionReward("no_such_module:score").score(*ROWS, {})


# --- the arithmetic tasks' graders


@pytest.mark.parametrize("task", [ModularSums(seed=1), WordProblems(seed=1)], ids=["sums", "words"])
def test_task_rewards(task):
    problems = [task.problem(index) for index in range(30)]
    prompts = [problem.prompt for problem in problems]
    columns = columns_of(problems)
    reward = TaskReward(task, right=2.0, wrong=-1.0)
    scores = checked_scores(reward, prompts, columns["solution"], columns)
    assert scores.values.tolist() == [2.0] * 30
    assert scores.outcomes == {"right": 30}
    shifted = columns["solution"][1:] + columns["solution"][:1]
    right = sum(a == b for a, b in zip(columns["answer"], columns["answer"][1:] + columns["answer"][:1], strict=True))
    scores = checked_scores(reward, prompts, shifted, columns)
    assert scores.outcomes == {"right": right, "wrong": 30 - right}
    if isinstance(task, WordProblems):
        assert checked_scores(NumericAnswer(), prompts, columns["solution"], columns).outcomes == {"right": 30}
    assert checked_scores(reward, prompts, ["?"] * 30, columns).outcomes == {"no_answer": 30}
    steps = reward.score_steps(prompts, columns["solution"], columns)
    assert [set(each) for each in steps] == [{1.0}] * 30
    assert [len(each) for each in steps] == [len(task.steps(text)) for text in columns["solution"]]
    with pytest.raises(RewardError, match="reward TaskReward: want the column 'answer', given none"):
        reward.verify(prompts, shifted, {})
    assert from_plain(to_plain(reward)) == reward
