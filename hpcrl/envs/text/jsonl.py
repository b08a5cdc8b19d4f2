"""Prompts, demonstrations and preferences from JSONL files."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

from hpcrl.envs.text.file_task import FileTask, Row, RowError, conversation_of, text_of
from hpcrl.envs.text.task import Conversation, Problem
from hpcrl.errors import InputError

Kind = Literal["prompts", "demonstrations", "preferences"]
_ANSWERS: dict[str, tuple[str, ...]] = {
    "prompts": (),
    "demonstrations": ("completion",),
    "preferences": ("chosen", "rejected"),
}


@dataclasses.dataclass(frozen=True)
class JsonLines(FileTask):
    """A file of one JSON object a line; keys beyond those read here become columns under their own names.

    | kind | keys, as text | as conversations |
    |---|---|---|
    | prompts | `prompt` | `prompt` or `messages`, up to the assistant's turn |
    | demonstrations | `prompt`, `completion` | the same as lists, or `messages` whose last is the assistant's |
    | preferences | `prompt`, `chosen`, `rejected` | the same as lists; a missing `prompt` is what both begin with |

    Raises: InputError for an option out of range; from `problem`, with file and line, for one that cannot be used.
    """

    _: dataclasses.KW_ONLY
    kind: Kind = "prompts"
    required: tuple[str, ...] = ()
    """Further keys that every line must have, such as the column a reward reads."""
    skip_equal: bool = False
    """Count, report and skip preferences whose sides are equal; else the first is an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _ANSWERS:
            raise InputError(f"JsonLines: kind: want one of {', '.join(_ANSWERS)}, given {self.kind!r}")

    def _problems(self, row: Row) -> list[Problem]:
        missing = [key for key in self.required if key not in row]
        if missing:
            raise RowError(f"want the key {missing[0]!r}, given {', '.join(map(repr, row)) or 'none'}")
        read = self._read(row)
        if self.kind == "preferences" and read["chosen"] == read["rejected"]:
            raise RowError("want a chosen and a rejected side that differ", "skip_equal")
        columns = {key: value for key, value in row.items() if key not in ("prompt", "messages")}
        prompt = read.pop("prompt")
        return [Problem(prompt, {**columns, **read})]

    def _read(self, row: Row) -> dict[str, str | Conversation]:
        """The prompt and the answers that the kind has."""
        answers = _ANSWERS[self.kind]
        if "messages" in row and self.kind != "preferences":
            messages = conversation_of(row, "messages")
            if self.kind == "prompts":
                return {"prompt": _prompt(messages, "messages")}
            if len(messages) < 2 or messages[-1].role != "assistant":
                raise RowError("messages: want a prompt, then a last message of the assistant")
            return {"prompt": messages[:-1], "completion": messages[-1:]}
        if self.kind == "preferences" and "prompt" not in row:
            sides = [_side(row, key) for key in answers]
            same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*sides, strict=False)))
            # Equal sides are told apart from a missing prompt by the caller.
            num_same = len(same) if sides[0] != sides[1] else len(same) - 1
            prompt = _prompt(sides[0][:num_same], "chosen and rejected: the messages both begin with")
            return {"prompt": prompt, **{key: side[num_same:] for key, side in zip(answers, sides, strict=True)}}
        if isinstance(row.get("prompt"), list):
            read = {key: conversation_of(row, key) for key in ("prompt", *answers) if _has(row, key)}
            return {**read, "prompt": _prompt(read["prompt"], "prompt")}
        return {key: text_of(row, key) for key in ("prompt", *answers)}


def _has(row: Row, key: str) -> bool:
    if key not in row:
        raise RowError(f"want the key {key!r}, given {', '.join(map(repr, row))}")
    return True


def _side(row: Row, key: str) -> Conversation:
    if not isinstance(row.get(key), list):
        raise RowError("want the key 'prompt', or chosen and rejected as lists of messages")
    return conversation_of(row, key)


def _prompt(messages: Conversation, what: str) -> Conversation:
    if not messages or messages[-1].role == "assistant":
        given = "none" if not messages else "one of the assistant"
        raise RowError(f"{what}: want a last message that the assistant answers, given {given}")
    return messages
