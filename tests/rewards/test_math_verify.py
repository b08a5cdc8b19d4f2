"""Answers compared by math-verify, in processes with a limit from outside."""

from __future__ import annotations

import importlib.util
import os
import threading
import time

import pytest
from shared_data import shared_data

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs.text import Gsm8kSolutions
from hpcrl.errors import InputError
from hpcrl.rewards import BoxedAnswer, MathVerify, NumericAnswer, RewardError, checked_scores
from hpcrl.rewards.execution_tester import descendants

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="math-verify is not installed: pip install 'hpcrl[math-verify]'",
)


def verify(responses, gold, **options):
    return MathVerify(**options).verify([""] * len(responses), responses, {"answer": gold})


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        (r"\frac{1}{2}", r"so $\boxed{0.5}$", "right"),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", "right"),
        ("10{,}000", "10000", "right"),
        ("(1,2)", r"\boxed{(1, 2)}", "right"),
        ("18", "#### 18", "right"),
        (18, "A: 18", "right"),
        ("18", r"\boxed{19}", "wrong"),
        ("x+1", r"\boxed{1+x}", "right"),
        ("18", "nothing here", "no_answer"),
        ("18", "", "no_answer"),
    ],
)
def test_answers(gold, response, outcome):
    assert verify([response], [gold]) == [outcome]


# Big enough to keep SymPy busy for minutes, inside of C code where no alarm helps.
SLOW = r"\boxed{9^{9^{9^{9}}}}"
HARD = r"\boxed{\int_0^1 " + "".join(rf"\sin(x^{{{n}}}) \cos(e^{{x^{n}}}) " for n in range(2, 9)) + " dx}"


@needs_math_verify
def test_what_takes_too_long_is_killed_and_others_go_on():
    began = time.perf_counter()
    responses = [r"\boxed{1}", SLOW, HARD, r"\boxed{1}", r"\boxed{2}"]
    outcomes = verify(responses, ["1", "7", "7", "1", "1"], time_s=2.0, workers=2)
    assert [outcomes[place] for place in (0, 3, 4)] == ["right", "right", "wrong"]
    assert set(outcomes[1:3]) <= {"timed_out", "wrong", "too_large", "crashed", "no_answer"}
    assert time.perf_counter() - began < 60


@needs_math_verify
def test_a_worker_that_hangs_or_dies_is_replaced(monkeypatch, tmp_path):
    from hpcrl.rewards import math_verify

    script = tmp_path / "math_verify_worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "print(json.dumps({'outcome': 'ready'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    response = json.loads(line)['response']\n"
        "    if response == 'hang': time.sleep(1000)\n"
        "    if response == 'die': os._exit(1)\n"
        "    print(json.dumps({'outcome': 'right'}), flush=True)\n"
    )
    monkeypatch.setattr(math_verify, "__file__", str(tmp_path / "math_verify.py"))
    # Another memory limit has workers of its own, which the other tests do not meet.
    options = {"time_s": 1.0, "memory_mb": 4097}
    responses = ["go", "hang", "go", "die", "go"]
    assert verify(responses, ["1"] * 5, **options) == ["right", "timed_out", "right", "crashed", "right"]
    script.write_text("import no_such_module")
    assert verify(["die"], ["1"], **options) == ["crashed"]
    with pytest.raises(
        RewardError, match=r"its process does not start \(crashed\): ModuleNotFoundError: No module named"
    ):
        verify(["go"], ["1"], **options)


@needs_math_verify
def test_off_the_main_thread():
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.extend(verify([r"\boxed{1}"], ["1"])))
    thread.start()
    thread.join()
    assert outcomes == ["right"]


@needs_math_verify
def test_processes_are_kept():
    verify([r"\boxed{1}"], ["1"])
    before = set(descendants(os.getpid()))
    verify([r"\boxed{1}", r"\boxed{2}"], ["1", "1"])
    assert before
    assert set(descendants(os.getpid())) == before


@needs_math_verify
def test_a_gold_answer_that_cannot_be_read_is_the_datas_fault():
    with pytest.raises(RewardError, match="want a gold answer that it can read, given '' in row 1"):
        verify([r"\boxed{1}"] * 2, ["1", ""])


@needs_math_verify
def test_it_agrees_with_our_own_verifiers():
    boxed = [(r"\frac12", "0.5"), ("1,000", "1000"), (r"50\%", "50"), ("3", "x = 3"), ("7", "8"), ("(1,2)", "(2,1)")]
    responses = [f"\\boxed{{{answer}}}" for _, answer in boxed]
    gold = [answer for answer, _ in boxed]
    ours = BoxedAnswer().verify([""] * len(boxed), responses, {"answer": gold})
    assert verify(responses, gold) == ours == ["right"] * 4 + ["wrong"] * 2


@needs_math_verify
def test_it_agrees_on_real_solutions():
    task = Gsm8kSolutions(shared_data("gsm8k/model-solutions-a.jsonl.gz"), stop=50)
    rows = [task.problem(index).columns for index in range(task.size)]
    columns = {"answer": [row["answer"] for row in rows]}
    answers = [row["completion"].rpartition("A:")[2] for row in rows]
    theirs = checked_scores(MathVerify(workers=2), [""] * len(rows), answers, columns).values
    ours = checked_scores(NumericAnswer(), [""] * len(rows), [row["completion"] for row in rows], columns).values
    assert (theirs == ours).mean() > 0.98


def test_it_is_an_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "math_verify" else real(name, *rest)
    )
    with pytest.raises(InputError, match=r"not installed; pip install 'hpcrl\[math-verify\]', or use BoxedAnswer"):
        verify(["1"], ["1"])


def test_knobs_and_columns():
    assert from_plain(to_plain(MathVerify(workers=2))) == MathVerify(workers=2)
    for name in ("time_s", "memory_mb", "workers"):
        with pytest.raises(InputError, match=f"MathVerify: {name}: want a number > 0, given 0"):
            MathVerify(**{name: 0})
    with pytest.raises(RewardError, match="want the column 'answer'"):
        MathVerify().verify([""], [""], {})
    with pytest.raises(RewardError, match="want a gold answer, text or a number, given None in row 0"):
        verify([""], [None])
