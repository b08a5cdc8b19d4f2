"""HH: pairs of transcripts, chosen and rejected, as their authors publish them.

Bai et al. 2022, arXiv:2204.05862. Nothing is downloaded: the files are the user's.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

from hpcrl.envs.text.file_task import FileTask, Row, RowError, text_of
from hpcrl.envs.text.task import Conversation, Message, Problem

_ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class HhPairs(FileTask):
    """Lines {"chosen": ..., "rejected": ...}, each a transcript "\\n\\nHuman: ...\\n\\nAssistant: ...".

    The prompt is what both have in common, up to the last "\\n\\nAssistant:" in it; columns `chosen` and `rejected`
    are what follows, further turns included.
    Raises: InputError for an option out of range; from `problem`, with file and line, for one that cannot be used.
    """

    _: dataclasses.KW_ONLY
    conversational: bool = False
    """Messages of `user` and `assistant` instead of text, for models with a chat template."""
    skip_equal: bool = False
    """Count, report and skip pairs whose sides are equal; else the first is an error."""

    def _problems(self, row: Row) -> list[Problem]:
        chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
        if chosen == rejected:
            raise RowError("want a chosen and a rejected side that differ", "skip_equal")
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        common = chosen[: sum(1 for _ in same)]
        cut = common.rfind(_ASSISTANT) + len(_ASSISTANT)
        if _ASSISTANT not in common:
            raise RowError(f"want transcripts that share all up to an {_ASSISTANT!r}")
        prompt, sides = chosen[:cut], {"chosen": chosen[cut:], "rejected": rejected[cut:]}
        for name, side in sides.items():
            if not side.strip():
                raise RowError(f"{name}: want a response, given an empty one")
        if not self.conversational:
            return [Problem(prompt, sides)]
        messages = _messages(prompt.removesuffix(_ASSISTANT))
        return [Problem(messages, {name: _messages(_ASSISTANT + side) for name, side in sides.items()})]


def _messages(transcript: str) -> Conversation:
    before, *turns = _TURN.split(transcript)
    if before.strip() or not turns:
        raise RowError("want a transcript that begins with a turn '\\n\\nHuman: '")
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return tuple(Message(_ROLES[name], content.strip()) for name, content in pairs)
