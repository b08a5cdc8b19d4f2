"""Arithmetic problems with worked solutions and exact graders: endless, seeded, small enough to learn from nothing.

A response is steps, each closed by a mark, then the answer behind another: `b1;c2;d1;#1`. The solution is unique, so a
step is right when it is the next one of the solution.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from hpcrl.envs.text.task import DEMONSTRATION, PROBLEM, STEP_NOISE, CountedNumbers, Problem, check_index
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw, normals

Operands = tuple[int, ...]
"""The numbers that a problem is about."""
Slip = Callable[[int], int]
"""A step's value as it is written: the right one, or in a noisy demonstration sometimes a wrong one."""

_MAX_ATTEMPTS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArithmeticTask(ABC):
    """An endless task: problem i is drawn by counted numbers from (seed, i).

    Train and test never share a problem, whatever their seeds: a hash of the operands, and of nothing else, puts each
    problem into one of them; sums and products whose operands only change places are one problem. Indices repeat
    problems where there are few.

    Columns of a problem: `answer`, `solution` (right) and `completion`, the demonstration: the solution with wrong and
    repeated steps as the knobs say. A wrong step is carried on into the later ones and into the answer.
    Raises: InputError for a knob out of range.
    """

    seed: int = 0
    split: Literal["train", "test"] = "train"
    test_share: float = 0.1
    """Share of all problems held out for split="test"; the same in both."""
    wrong_step: float = 0.0
    """Probability that a step of a demonstration has a wrong value."""
    repeated_step: float = 0.0
    """Probability that a step of a demonstration is written twice."""

    step_end: ClassVar[str] = ";"
    """Closes a step."""
    answer_mark: ClassVar[str] = "#"
    """Opens the answer, which nothing closes."""

    def __post_init__(self) -> None:
        self._want(isinstance(self.seed, int) and 0 <= self.seed < 2**64, "seed", "a whole number in [0, 2**64)")
        self._want(self.split in ("train", "test"), "split", "'train' or 'test'")
        self._want(0 < self.test_share < 1, "test_share", "a number between 0 and 1")
        self._want(0 <= self.wrong_step <= 1, "wrong_step", "a probability")
        self._want(0 <= self.repeated_step <= 1, "repeated_step", "a probability")

    def _want(self, good: bool, name: str, wanted: str) -> None:
        if not good:
            raise InputError(f"{type(self).__name__}: {name}: want {wanted}, given {getattr(self, name)!r}")

    @property
    def size(self) -> None:
        """None: endless."""
        return None

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """Every character that a prompt, a solution or a demonstration can hold, sorted."""

    @abstractmethod
    def _draw(self, numbers: CountedNumbers) -> Operands: ...

    @abstractmethod
    def _key(self, operands: Operands) -> Operands:
        """What makes two problems the same one."""

    @abstractmethod
    def _question(self, operands: Operands, numbers: CountedNumbers) -> str: ...

    @abstractmethod
    def _solve(self, operands: Operands, slip: Slip) -> tuple[list[str], int]:
        """The steps without their end marks, and the answer."""

    def _wrong(self, value: int, numbers: CountedNumbers) -> int:
        """Another value than the right one: one of its digits changed."""
        digits = list(str(abs(value)))
        place = numbers.below(len(digits))
        digits[place] = str((int(digits[place]) + 1 + numbers.below(9)) % 10)
        return int("".join(digits)) * (-1 if value < 0 else 1)

    def _in_split(self, operands: Operands) -> bool:
        digest = hashlib.blake2b(repr(self._key(operands)).encode(), digest_size=8).digest()
        is_test = int.from_bytes(digest, "little") < self.test_share * 2**64
        return is_test == (self.split == "test")

    def _written(self, steps: list[str], answer: int) -> str:
        return "".join(step + self.step_end for step in steps) + f"{self.answer_mark}{answer}"

    def _demonstration(self, operands: Operands, index: int) -> str:
        numbers = CountedNumbers(self.seed, index, DEMONSTRATION)

        def slip(value: int) -> int:
            return self._wrong(value, numbers) if numbers.uniform() < self.wrong_step else value

        steps, answer = self._solve(operands, slip)
        return self._written(
            [step for step in steps for _ in range(1 + (numbers.uniform() < self.repeated_step))], answer
        )

    def problem(self, index: int) -> Problem:
        """The problem at an index in [0, 2**32), the same anywhere.

        Raises: InputError for an index out of range, or when the split holds no problem of this difficulty.
        """
        check_index(index)
        for attempt in range(_MAX_ATTEMPTS):
            numbers = CountedNumbers(self.seed, index, PROBLEM, attempt)
            operands = self._draw(numbers)
            if self._in_split(operands):
                break
        else:
            raise InputError(
                f"{type(self).__name__}: want problems for split={self.split!r}, found none in {_MAX_ATTEMPTS} "
                "attempts; make the problems harder, so that there are more, or change test_share"
            )
        steps, answer = self._solve(operands, lambda value: value)
        columns = {
            "answer": str(answer),
            "solution": self._written(steps, answer),
            "completion": self._demonstration(operands, index),
        }
        return Problem(self._question(operands, numbers), columns)

    def steps(self, response: str) -> list[tuple[int, int]]:
        """Spans (start, end) of the finished steps in a response, in characters, end exclusive; the answer is one.

        Example:
            >>> ModularSums().steps("b1;c2;d")
            [(0, 3), (3, 6)]
        """
        spans, start = [], 0
        while (end := response.find(self.step_end, start)) >= 0:
            end += len(self.step_end)
            spans.append((start, end))
            start = end
        if response.startswith(self.answer_mark, start):
            spans.append((start, len(response)))
        return spans

    def grade(self, problem: Problem, response: str) -> bool:
        """Whether the response ends with the right answer, after the only answer mark in it.

        Example:
            >>> task = ModularSums()
            >>> problem = task.problem(0)
            >>> task.grade(problem, problem.columns["solution"]), task.grade(problem, "#0#1#2#3#4#5#6")
            (True, False)
        """
        before, mark, answer = response.rpartition(self.answer_mark)
        return bool(mark) and self.answer_mark not in before and answer.strip() == _text(problem.columns, "answer")

    def grade_steps(
        self,
        problem: Problem,
        response: str,
        *,
        right: float = 1.0,
        wrong: float = 0.0,
        noise: float = 0.0,
        repeats_are_right: bool = False,
    ) -> list[float]:
        """A score for each span of `steps`: right, when it is the next step of the solution.

        Args:
            problem: as this task made it.
            response: any text.
            right, wrong: the two scores.
            noise: standard deviation of a normal number added to each; counted by the text up to the step's end, as a
                learned model's error would be.
            repeats_are_right: the flaw that process reward models have been seen to have: a right step repeated is
                right again (arXiv:2410.15115), so that repeating pays.
        Example:
            >>> task = ModularSums()
            >>> problem = Problem("35=", {"answer": "1", "solution": "b1;#1"})
            >>> task.grade_steps(problem, "b1;b1;#1"), task.grade_steps(problem, "b1;b1;#1", repeats_are_right=True)
            ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0])
        """
        solution = _text(problem.columns, "solution")
        expected = [_in_order(solution[start:end]) for start, end in self.steps(solution)]
        scores, done = [], 0
        for start, end in self.steps(response):
            step = _in_order(response[start:end])
            is_right = done < len(expected) and step == expected[done]
            if is_right:
                done += 1
            elif repeats_are_right and done:
                is_right = step == expected[done - 1]
            scores.append(right if is_right else wrong)
            if noise:
                scores[-1] += noise * _normal_of(f"{problem.prompt}\0{response[:end]}")
        return scores


def _text(columns: Mapping[str, object], name: str) -> str:
    value = columns.get(name)
    if not isinstance(value, str):
        raise InputError(f"problem: want the column {name!r}, as the task made it, given columns {', '.join(columns)}")
    return value


def _in_order(step: str) -> str:
    """Terms and factors in one order, so that 4+3=7 is the step 3+4=7."""
    left, equals, right = step.partition("=")
    for sign in "+*":
        if left.replace(sign, "").isdigit():
            left = sign.join(sorted(left.split(sign)))
    return left + equals + right


def _normal_of(text: str) -> float:
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return float(normals(seed, 0, step=0, iteration=STEP_NOISE, draw=Draw.PROMPT)[0, 0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModularSums(ArithmeticTask):
    """Running sums of digits, modulo a small number: the smallest task that process rewards can be studied on.

    `3516=` is answered `b1;c2;d1;#1`: letter k is the sum of the first k digits. Every character is one token of a
    character tokenizer, so a right response has 3 * num_terms - 1 of them, and an end.
    Raises: InputError for a knob out of range.
    Example:
        >>> problem = ModularSums(seed=1).problem(0)
        >>> problem.prompt, problem.columns["solution"]
        ('1444=', 'b5;c2;d6;#6')
    """

    num_terms: int = 4
    """Digits in a prompt, 2 to 26."""
    max_term: int = 6
    """Digits are 1 to max_term, at most 9."""
    modulus: int = 7
    """2 to 10."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._want(2 <= self.num_terms <= 26, "num_terms", "2 to 26")
        self._want(1 <= self.max_term <= 9, "max_term", "1 to 9")
        self._want(2 <= self.modulus <= 10, "modulus", "2 to 10")

    @property
    def alphabet(self) -> str:
        """Every character that can occur, sorted."""
        digits = {str(digit) for digit in (*range(1, self.max_term + 1), *range(self.modulus))}
        return "".join(sorted({*digits, *(_letter(place) for place in range(1, self.num_terms)), *"=;#"}))

    def _draw(self, numbers: CountedNumbers) -> Operands:
        return tuple(1 + numbers.below(self.max_term) for _ in range(self.num_terms))

    def _key(self, operands: Operands) -> Operands:
        return operands

    def _question(self, operands: Operands, numbers: CountedNumbers) -> str:
        return "".join(map(str, operands)) + "="

    def _solve(self, operands: Operands, slip: Slip) -> tuple[list[str], int]:
        total, steps = operands[0] % self.modulus, []
        for place, term in enumerate(operands[1:], start=1):
            total = slip((total + term) % self.modulus)
            steps.append(f"{_letter(place)}{total}")
        return steps, total

    def _wrong(self, value: int, numbers: CountedNumbers) -> int:
        return (value + 1 + numbers.below(self.modulus - 1)) % self.modulus


def _letter(place: int) -> str:
    return chr(ord("a") + place)


def _number(numbers: CountedNumbers, digits: int) -> int:
    """A number of so many digits, the first of them not 0; one digit: 0 to 9."""
    if digits == 1:
        return numbers.below(10)
    first = str(1 + numbers.below(9))
    return int(first + "".join(str(numbers.below(10)) for _ in range(digits - 1)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiDigitAddition(ArithmeticTask):
    """Sums of whole numbers, worked out column by column from the right, the carry as a last term.

    `47+85=` is answered `7+5=12;4+8+1=13;#132`. Terms in another order are the same problem to the split.
    Raises: InputError for a knob out of range.
    Example:
        >>> problem = MultiDigitAddition(seed=1).problem(0)
        >>> problem.prompt, problem.columns["solution"]
        ('96+53=', '6+3=9;9+5=14;#149')
    """

    num_terms: int = 2
    """2 to 9."""
    min_digits: int = 2
    """Fewest digits of a term, from 1."""
    max_digits: int = 3
    """Most digits of a term, at most 100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._want(2 <= self.num_terms <= 9, "num_terms", "2 to 9")
        self._want(1 <= self.min_digits <= self.max_digits, "min_digits", f"1 to max_digits (= {self.max_digits})")
        self._want(self.max_digits <= 100, "max_digits", "at most 100")

    @property
    def alphabet(self) -> str:
        """Every character that can occur, sorted."""
        return "".join(sorted("0123456789+=;#"))

    def _draw(self, numbers: CountedNumbers) -> Operands:
        lengths = range(self.min_digits, self.max_digits + 1)
        return tuple(_number(numbers, lengths[numbers.below(len(lengths))]) for _ in range(self.num_terms))

    def _key(self, operands: Operands) -> Operands:
        return tuple(sorted(operands))

    def _question(self, operands: Operands, numbers: CountedNumbers) -> str:
        return "+".join(map(str, operands)) + "="

    def _solve(self, operands: Operands, slip: Slip) -> tuple[list[str], int]:
        written = [str(operand) for operand in operands]
        width = max(map(len, written))
        columns = zip(*(text.zfill(width) for text in written), strict=True)
        steps, answer, carry = [], 0, 0
        for place, column in enumerate(reversed(list(columns))):
            terms = [*map(int, column), *([carry] if carry else [])]
            total = slip(sum(terms))
            steps.append("+".join(map(str, terms)) + f"={total}")
            carry, digit = divmod(total, 10)
            answer += digit * 10**place
        return steps, answer + carry * 10**width


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiDigitMultiplication(ArithmeticTask):
    """Products of two whole numbers, worked out digit by digit of the second, the parts added up.

    `47*85=` is answered `47*5=235;47*80=3760;235+3760=3995;#3995`. Exchanged factors are the same problem to the split.
    Raises: InputError for a knob out of range.
    Example:
        >>> problem = MultiDigitMultiplication(seed=1).problem(0)
        >>> problem.prompt, problem.columns["solution"]
        ('19*62=', '19*2=38;19*60=1140;38+1140=1178;#1178')
    """

    multiplicand_digits: int = 2
    """Digits of the first factor, 1 to 100."""
    multiplier_digits: int = 2
    """Digits of the second factor, 1 to 100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._want(1 <= self.multiplicand_digits <= 100, "multiplicand_digits", "1 to 100")
        self._want(1 <= self.multiplier_digits <= 100, "multiplier_digits", "1 to 100")

    @property
    def alphabet(self) -> str:
        """Every character that can occur, sorted."""
        return "".join(sorted("0123456789+*=;#"))

    def _draw(self, numbers: CountedNumbers) -> Operands:
        return _number(numbers, self.multiplicand_digits), _number(numbers, self.multiplier_digits)

    def _key(self, operands: Operands) -> Operands:
        return tuple(sorted(operands))

    def _question(self, operands: Operands, numbers: CountedNumbers) -> str:
        return "*".join(map(str, operands)) + "="

    def _solve(self, operands: Operands, slip: Slip) -> tuple[list[str], int]:
        multiplicand, multiplier = operands
        steps, parts = [], []
        for place, digit in enumerate(reversed(str(multiplier))):
            factor = int(digit) * 10**place
            parts.append(slip(multiplicand * factor))
            steps.append(f"{multiplicand}*{factor}={parts[-1]}")
        total = parts[0]
        for part in parts[1:]:
            added = slip(total + part)
            steps.append(f"{total}+{part}={added}")
            total = added
        return steps, total


_NAMES = ("Ada", "Ben", "Cleo", "Dev", "Ema", "Finn", "Gita", "Hugo")
_THINGS = ("apples", "pens", "stamps", "shells", "cards", "beads", "coins", "nuts")
_START = "{name} has {0} {thing}."
_GAIN, _LOSS, _TIMES, _BAGS = range(4)
# Two wordings of each event; {0} and {1} are its numbers.
_EVENTS = (
    ("{name} finds {0} more.", "A friend gives {name} {0} {thing}."),
    ("{name} loses {0} of them.", "{name} gives {0} of the {thing} away."),
    ("Then {name} gets {0} times as many as before.", "Soon the {thing} are {0} times as many."),
    ("{name} buys {0} bags with {1} {thing} in each.", "There come {0} boxes, each with {1} {thing}."),
)
_QUESTION = "How many {thing} does {name} have now?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordProblems(ArithmeticTask):
    """Little stories about a number of things that grows and shrinks, solved one line for each step.

    A line is `3+4=7`; the answer stands behind `####`, as in GSM8K. The same numbers and events with another name or
    another thing are the same problem to the split.
    Raises: InputError for a knob out of range.
    Example:
        >>> problem = WordProblems(seed=5, max_number=9).problem(3)
        >>> print(problem.prompt + problem.columns["solution"])
        Gita has 8 coins. Gita gives 2 of the coins away. A friend gives Gita 5 coins. How many ... does Gita have now?
        8-2=6
        6+5=11
        #### 11
    """

    min_steps: int = 2
    """Fewest steps of a solution, from 1."""
    max_steps: int = 4
    """Most steps of a solution, at most 12."""
    max_number: int = 20
    """Largest number in a story, 2 to 10000."""

    step_end: ClassVar[str] = "\n"
    answer_mark: ClassVar[str] = "#### "

    def __post_init__(self) -> None:
        super().__post_init__()
        self._want(1 <= self.min_steps <= self.max_steps, "min_steps", f"1 to max_steps (= {self.max_steps})")
        self._want(self.max_steps <= 12, "max_steps", "at most 12")
        self._want(2 <= self.max_number <= 10_000, "max_number", "2 to 10000")

    @property
    def alphabet(self) -> str:
        """Every character that can occur, sorted."""
        texts = (*_NAMES, *_THINGS, _START, *(text for event in _EVENTS for text in event), _QUESTION)
        return "".join(sorted({*"".join(texts).translate({ord(c): None for c in "{}_"}), *"0123456789+-*=\n#"}))

    def _draw(self, numbers: CountedNumbers) -> Operands:
        """The start, then three numbers for each event: its kind, its number, and the second one or 0."""
        left = self.min_steps + numbers.below(self.max_steps - self.min_steps + 1)
        total = 2 + numbers.below(self.max_number - 1)
        operands = [total]
        while left:
            # Bags take two steps. A loss leaves something; no number is 1, which would want other words.
            kinds = [_GAIN, _TIMES] + [_LOSS] * (total > 3) + [_BAGS] * (left > 1)
            kind, second = kinds[numbers.below(len(kinds))], 0
            if kind == _LOSS:
                first = 2 + numbers.below(min(total - 3, self.max_number - 1))
                total -= first
            elif kind == _GAIN:
                first = 2 + numbers.below(self.max_number - 1)
                total += first
            elif kind == _TIMES:
                first = 2 + numbers.below(3)
                total *= first
            else:
                first, second = 2 + numbers.below(8), 2 + numbers.below(8)
                total += first * second
            operands += [kind, first, second]
            left -= 1 + (kind == _BAGS)
        return tuple(operands)

    def _key(self, operands: Operands) -> Operands:
        return operands

    def _question(self, operands: Operands, numbers: CountedNumbers) -> str:
        words = {"name": _NAMES[numbers.below(len(_NAMES))], "thing": _THINGS[numbers.below(len(_THINGS))]}
        sentences = [_START.format(operands[0], **words)]
        for kind, first, second in _events(operands):
            sentences.append(_EVENTS[kind][numbers.below(2)].format(first, second, **words))
        return " ".join([*sentences, _QUESTION.format(**words)]) + "\n"

    def _solve(self, operands: Operands, slip: Slip) -> tuple[list[str], int]:
        total, steps = operands[0], []

        def step(left: int, sign: str, right: int) -> int:
            value = slip({"+": left + right, "-": left - right, "*": left * right}[sign])
            steps.append(f"{left}{sign}{right}={value}")
            return value

        for kind, first, second in _events(operands):
            if kind == _BAGS:
                total = step(total, "+", step(first, "*", second))
            else:
                total = step(total, {_GAIN: "+", _LOSS: "-", _TIMES: "*"}[kind], first)
        return steps, total


def _events(operands: Operands) -> list[tuple[int, int, int]]:
    return list(zip(operands[1::3], operands[2::3], operands[3::3], strict=True))
