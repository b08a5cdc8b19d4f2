"""Stages that are only looked at, to make a run of ten."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from hpcrl.stages import Stage, StageContext


@dataclasses.dataclass(frozen=True)
class StandIn(Stage):
    """Publishes nothing, reads nothing; its name is all that matters."""

    name: ClassVar[str] = "stand_in"

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ()

    def run(self, context: StageContext) -> None:
        raise AssertionError("this stage is only looked at")


@dataclasses.dataclass(frozen=True)
class Generate(StandIn):
    name: ClassVar[str] = "generate"


@dataclasses.dataclass(frozen=True)
class Score(StandIn):
    name: ClassVar[str] = "score"


@dataclasses.dataclass(frozen=True)
class Values(StandIn):
    name: ClassVar[str] = "values"


@dataclasses.dataclass(frozen=True)
class Refine(StandIn):
    name: ClassVar[str] = "refine"


@dataclasses.dataclass(frozen=True)
class Guard(StandIn):
    name: ClassVar[str] = "guard"


@dataclasses.dataclass(frozen=True)
class Redistribute(StandIn):
    name: ClassVar[str] = "redistribute"
