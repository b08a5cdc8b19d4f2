"""The examples of docs/rewards.md, run as a reader would run them."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from hpcrl import rewards
from hpcrl.envs import text

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


@pytest.mark.filterwarnings("ignore:questions.jsonl. skipped 1 of 3 lines")
def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
    (lines,) = re.findall(r"With `questions.jsonl`:\n\n```json\n(.*?)```", PAGE, flags=re.DOTALL)
    Path("questions.jsonl").write_text(lines)
    examples = "\n".join(re.findall(r"```pycon\n(.*?)```", PAGE, flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, "docs/rewards.md", None, None)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    runner = doctest.DocTestRunner(optionflags=flags)
    runner.run(test)
    assert (runner.failures, runner.tries > 20) == (0, True)


def test_the_tables_name_what_there_is():
    named = set(re.findall(r"`([A-Z]\w+)", PAGE))
    there = {*text.__all__, *rewards.__all__}
    assert named <= there
    abstract = {"ArithmeticTask", "FileTask", "Conversation", "Message", "Problem", "TextTask", "columns_of"}
    abstract |= {"Reward", "RewardError", "Scores", "checked_scores"}
    assert there - abstract <= named | set(re.findall(r"\b([A-Z]\w+)\(", PAGE))


def test_the_knobs_of_the_tables_are_fields():
    for name, knobs in re.findall(r"^\| `(\w+)`.*\| ((?:`\w+`(?:, )?)+) \|$", PAGE, flags=re.MULTILINE):
        kind = getattr(text, name)
        assert {*re.findall(r"`(\w+)`", knobs)} <= {*kind.__dataclass_fields__}
