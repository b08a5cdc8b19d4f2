"""GSM8K, grade school mathematics, and labelled solutions of models, as their authors publish them.

Cobbe et al. 2021, arXiv:2110.14168. Nothing is downloaded: the files are the user's.
"""

from __future__ import annotations

import dataclasses
import re

from hpcrl.envs.text.file_task import FileTask, Row, RowError, text_of
from hpcrl.envs.text.task import Problem

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _line_steps(response: str) -> list[tuple[int, int]]:
    """Every finished line, and the last one where the answer stands on it."""
    lines = re.finditer(r"^(?:[^\n]*\n|(?:####|A:)[^\n]*\Z)", response, re.MULTILINE)
    return [line.span() for line in lines]


def _final_answer(solution: str, mark: str) -> str:
    _, found, answer = solution.rpartition(mark)
    if not found or not answer.strip():
        raise RowError(f"want an answer behind {mark!r}, given a solution without one")
    return answer.strip()


@dataclasses.dataclass(frozen=True)
class Gsm8k(FileTask):
    """Questions with worked answers: lines {"question": ..., "answer": "...\\n#### 72"}.

    Columns: `answer`, the text behind the last `####`; `completion`, the whole worked answer.
    Raises: InputError for an option out of range; from `problem`, with file and line, for one that cannot be used.
    """

    _: dataclasses.KW_ONLY
    keep_annotations: bool = True
    """False: the calculator's notes, as in 48/2=<<48/2=24>>24, are taken out of the completion."""

    def _problems(self, row: Row) -> list[Problem]:
        question, worked = text_of(row, "question"), text_of(row, "answer")
        answer = _final_answer(worked, "####")
        completion = worked if self.keep_annotations else _ANNOTATION.sub("", worked)
        return [Problem(question, {"answer": answer, "completion": completion})]

    def steps(self, response: str) -> list[tuple[int, int]]:
        """Spans (start, end) of the finished lines, the line of the answer one of them.

        Example:
            >>> Gsm8k("test.jsonl").steps("6*2=12\\n#### 12")
            [(0, 7), (7, 14)]
        """
        return _line_steps(response)


@dataclasses.dataclass(frozen=True)
class Gsm8kSolutions(FileTask):
    """Labelled solutions of models: lines {"question", "ground_truth", model: {"solution", "is_correct"}, ...}.

    Each model's solution is a problem of its own, in the line's order. Columns: `answer`, the text behind the last "A:"
    of the ground truth; `completion`; `is_correct`; `model`. Ranges of lines split by question.
    Raises: InputError for an option out of range; from `problem`, with file and line, for one that cannot be used.
    """

    def _problems(self, row: Row) -> list[Problem]:
        question = text_of(row, "question")
        answer = _final_answer(text_of(row, "ground_truth"), "A:")
        problems = []
        for model, labelled in row.items():
            if model in ("question", "ground_truth"):
                continue
            if not isinstance(labelled, dict) or not isinstance(labelled.get("is_correct"), bool):
                raise RowError(f"{model}: want an object with solution and is_correct, true or false")
            columns = {"answer": answer, "completion": text_of(labelled, "solution"), "model": model}
            problems.append(Problem(question, {**columns, "is_correct": labelled["is_correct"]}))
        if not problems:
            raise RowError("want a model's solution beside question and ground_truth, given none")
        return problems

    def steps(self, response: str) -> list[tuple[int, int]]:
        """Spans (start, end) of the finished lines, the line of the answer one of them."""
        return _line_steps(response)
