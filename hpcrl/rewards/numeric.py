"""Numbers and boxed expressions as answers, compared without any package.

The rules are those of GSM8K (Cobbe et al. 2021, arXiv:2110.14168) and MATH (Hendrycks et al. 2021, arXiv:2103.03874).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from hpcrl.rewards.interface import Columns, RewardError, Verifier, column_of

# Long numbers and large exponents would take a Fraction of any size, from a text that a model chose.
_NUMBER = re.compile(r"([-+]?)([0-9]{0,400})(?:\.([0-9]{0,400}))?(?:[eE]([-+]?[0-9]{1,3}))?")
_RATIO = re.compile(r"([-+]?[0-9]{1,400})/([0-9]{1,400})")


def marked_answer(text: str, marks: Sequence[str] = ("####", "A:")) -> str | None:
    """The text behind the last mark, up to the line's end; None where no mark is.

    Example:
        >>> marked_answer("6*7=42\\n#### 42"), marked_answer("42")
        ('42', None)
    """
    ends = [place + len(mark) for mark in marks if (place := text.rfind(mark)) >= 0]
    if not ends:
        return None
    return text[max(ends) :].strip().partition("\n")[0].strip()


def number_of(text: str) -> Fraction | None:
    """The number that a text is, without commas, dollar signs, spaces and a last dot; None where it is none.

    Example:
        >>> number_of("$1,200.50."), number_of("-3/4"), number_of("12 eggs")
        (Fraction(2401, 2), Fraction(-3, 4), None)
    """
    bare = re.sub(r"[,$\s]", "", text).replace("\N{MINUS SIGN}", "-").removesuffix(".")
    if ratio := _RATIO.fullmatch(bare):
        denominator = int(ratio[2])
        return Fraction(int(ratio[1]), denominator) if denominator else None
    match = _NUMBER.fullmatch(bare)
    if match is None or not (match[2] or match[3]):
        return None
    sign, whole, decimals, exponent = match[1], match[2], match[3] or "", int(match[4] or 0)
    value = Fraction(int(whole + decimals) * (-1 if sign == "-" else 1), 10 ** len(decimals))
    return value * Fraction(10) ** exponent


def boxed_answer(text: str) -> str | None:
    r"""What is in the last \boxed{} or \fbox{}, braces matched, or the word behind "\boxed "; None without one.

    Example:
        >>> boxed_answer(r"so \boxed{1} or rather \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if rest.startswith(" "):
        words = rest.split("$")[0].split()
        return words[0] if words else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() if place else None
    return None


_DROPPED = re.compile(r"\\left|\\right|\\[!,;: ]|\\\$|\$|\\%|%|\^\{?\\circ\}?|\\displaystyle")
_UNIT = re.compile(r"(?<=[0-9)}])\s*\\(?:text|mbox|mathrm)\{[^{}]*\}(?:\^\{?[0-9]\}?)?$")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}")


def normal_form(expression: str) -> str:
    r"""An expression of MATH in one spelling: fractions, roots, spaces, units, thousands.

    Example:
        >>> normal_form(r"x = \dfrac12 \text{ cm}"), normal_form(r"0.50"), normal_form("3/4")
        ('\\frac{1}{2}', '0.5', '\\frac{3}{4}')
    """
    text = expression.strip().rstrip(".").replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = _UNIT.sub("", text)
    text = _TEXT.sub(r"\1", text)
    text = _DROPPED.sub("", text)
    left, equals, right = text.partition("=")
    if equals and len(left.strip()) <= 2 and "=" not in right:
        text = right
    text = re.sub(r"\s+", "", text)
    # 1{,}000 and 1,000 are numbers; (1,000) and 1,2 are not.
    text = text.replace("{,}", ",")
    if re.fullmatch(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?", text):
        text = text.replace(",", "")
    text = re.sub(r"\\frac([0-9a-zA-Z])([0-9a-zA-Z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([0-9a-zA-Z])\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([0-9a-zA-Z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt([0-9a-zA-Z])", r"\\sqrt{\1}", text)
    if ratio := re.fullmatch(r"([-+]?[0-9]+)/([0-9]+)", text):
        text = f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}"
    # -\frac{1}{2} and \frac{-1}{2} are one.
    text = re.sub(r"^\\frac\{-([0-9]+)\}", r"-\\frac{\1}", text)
    text = re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", text)
    return re.sub(r"(?<![0-9])([0-9]+)\.([0-9]*?)0*(?![0-9])", lambda m: f"{m[1]}.{m[2]}" if m[2] else m[1], text)


def same_expression(one: str, other: str) -> bool:
    r"""Whether two answers of MATH are one in normal form, or one number.

    A fraction is a number where numerator and denominator are whole. Nothing is simplified: `2\sqrt{2}` is not
    `\sqrt{8}`; `hpcrl.rewards.MathVerify` knows more.
    Example:
        >>> same_expression(r"\frac{1}{2}", ".5"), same_expression("(1, 2)", "(1,2)"), same_expression("5", "5.1")
        (True, True, False)
    """
    left, right = normal_form(one), normal_form(other)
    if left == right:
        return left != ""
    numbers = [number_of(re.sub(r"^(-?)\\frac\{([0-9]+)\}\{([0-9]+)\}$", r"\1\2/\3", text)) for text in (left, right)]
    # Commas that are left stand between the parts of a tuple, and no number has them.
    return "," not in left + right and None not in numbers and numbers[0] == numbers[1]


def _outcomes(
    reward: str,
    responses: Sequence[str],
    gold: Sequence[object],
    extract: Callable[[str], str | None],
    is_right: Callable[[str, str], bool],
) -> list[str]:
    outcomes = []
    for row, (response, answer) in enumerate(zip(responses, gold, strict=True)):
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise RewardError(f"reward {reward}: want a gold answer, text or a number, given {answer!r} in row {row}")
        found = extract(response)
        outcomes.append("no_answer" if found is None else "right" if is_right(found, str(answer)) else "wrong")
    return outcomes


@dataclasses.dataclass(frozen=True)
class NumericAnswer(Verifier):
    """A number behind the last mark of the response, compared as a number with a column.

    Commas, dollar signs, spaces and a last dot are dropped. Outcomes: right, wrong, no_answer.
    Raises: RewardError, from `verify`, for a missing column or a gold answer that is no number.
    """

    _: dataclasses.KW_ONLY
    column: str = "answer"
    marks: tuple[str, ...] = ("####", "A:")
    """The last of any of them opens the answer."""

    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response."""
        gold = column_of(columns, self.column, "NumericAnswer")
        for row, answer in enumerate(gold):
            if number_of(str(answer)) is None:
                raise RewardError(f"reward NumericAnswer: want a number as gold answer, given {answer!r} in row {row}")

        def is_right(found: str, answer: str) -> bool:
            return number_of(found) == number_of(answer)

        return _outcomes("NumericAnswer", responses, gold, lambda text: marked_answer(text, self.marks), is_right)


@dataclasses.dataclass(frozen=True)
class BoxedAnswer(Verifier):
    r"""The last \boxed{} of the response, compared with a column: `same_expression`.

    Outcomes: right, wrong, no_answer.
    Raises: RewardError, from `verify`, for a missing column or a gold answer that is neither text nor a number.
    """

    _: dataclasses.KW_ONLY
    column: str = "answer"

    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response."""
        gold = column_of(columns, self.column, "BoxedAnswer")
        return _outcomes("BoxedAnswer", responses, gold, boxed_answer, same_expression)
