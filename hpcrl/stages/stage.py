"""What a stage is, and what it is given when it runs."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from hpcrl.comm import Collectives, TreeSum
from hpcrl.data import Trajectories
from hpcrl.envs import EnvDescription, VectorEnv
from hpcrl.errors import InputError
from hpcrl.residents import Residents

Array = npt.NDArray[Any]


class StageInterruptedError(Exception):
    """The run was asked to stop; what the stage had finished is published."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Iterations of the run in which a stage takes part: start, start + 1, ..., stop - 1.

    Raises: InputError unless 0 <= start < stop.
    Example:
        >>> [Phase(stop=2).holds(iteration) for iteration in (0, 1, 2)]
        [True, True, False]
    """

    start: int = 0
    stop: int | None = None
    """None: to the end of the run."""

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise InputError(f"Phase: want 0 <= start < stop, given start={self.start}, stop={self.stop}")

    def holds(self, iteration: int) -> bool:
        """Whether an iteration belongs to it."""
        return iteration >= self.start and (self.stop is None or iteration < self.stop)


class Stage(ABC):
    """A step of the pipeline: a frozen dataclass that reads fields, writes fields and drives at most one model.

    The stage is its configuration; it knows neither its neighbours nor where it runs.
    """

    acts: ClassVar[bool] = False
    """Whether its model plays: then it may do so `policy_lag` updates late."""
    by_block: ClassVar[bool] = False
    """Whether blocks are worked on one by one, without a word between them: then jobs of an array can share them."""
    mesh: str = "main"
    """The mesh on which it runs; a field of every stage."""

    phase: Phase | None = None
    """When it takes part; None: always. A field of stages that may be left out."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Names its folder; once in a pipeline."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Fields it needs from the stages before it."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """Fields it adds."""

    @property
    def is_text(self) -> bool:
        """Whether it needs a model of text."""
        return False

    @property
    def role(self) -> str | None:
        """The model it reads or trains, if any."""
        return None

    @property
    def trains(self) -> str | None:
        """The role whose version it raises, if any."""
        return None

    def due(self, iteration: int) -> bool:
        """Whether it runs in this iteration."""
        return self.phase is None or self.phase.holds(iteration)

    def check(self) -> None:
        """Looks for what it needs outside the run: files, functions. Raises: InputError; nothing is written."""
        return

    @abstractmethod
    def run(self, context: StageContext) -> None:
        """Do the work for the blocks this rank owns."""


class Output(Protocol):
    """Where a stage's results go; owned by the runner, which hands them on in memory and writes them behind."""

    def finished_blocks(self) -> frozenset[int]:
        """Blocks that an earlier attempt published: the stage leaves them out."""

    def emit(
        self,
        block: int,
        trajectories: Trajectories | None,
        *,
        lanes: Trajectories | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Hand on one block's fields (and lanes); `facts` is a small JSON value kept in the block's part."""

    def emit_checkpoint(self, facts: Mapping[str, object]) -> None:
        """The stage has trained its role: publish the role as this iteration's checkpoint."""

    def emit_facts(self, facts: Mapping[str, object]) -> None:
        """The stage's whole result is a small JSON value (rank 0 writes it)."""

    def save_progress(self, tensors: Mapping[str, Mapping[str, Array]], state: Mapping[str, object]) -> None:
        """Publish resumable progress now (rank 0 writes; every rank calls)."""

    def load_progress(self) -> tuple[Mapping[str, Mapping[str, Array]], Mapping[str, object]] | None:
        """The newest published progress of this stage, or None."""

    def log(self, row: Mapping[str, object]) -> None:
        """One line of metrics.jsonl (rank 0 writes)."""


class RolloutSource(Protocol):
    """The environment that a pipeline plays."""

    @property
    def env(self) -> str:
        """Its id."""

    @property
    def env_options(self) -> Mapping[str, object]:
        """Options of its adapter."""


@dataclasses.dataclass
class Environments:
    """This rank's environments between iterations: (stage, block) -> (environment, iteration it stands after)."""

    live: dict[tuple[str, int], tuple[VectorEnv, int]] = dataclasses.field(default_factory=dict)

    def close(self) -> None:
        for environment, _ in self.live.values():
            environment.close()
        self.live.clear()


@dataclasses.dataclass
class StageContext:
    """All that a stage is given: where it stands, its ranks, its inputs and its output."""

    iteration: int
    num_iterations: int
    seed: int
    num_blocks: int
    comm: Collectives
    tree: TreeSum
    residents: Residents
    environments: Environments
    output: Output
    inputs: Callable[[int], Trajectories]
    """Block -> all fields that earlier stages of this iteration wrote."""
    previous_lanes: Callable[[int], Trajectories | None]
    """Block -> this stage's lanes after the previous iteration; None at the run's beginning."""
    earlier_facts: Callable[[str], Iterator[Mapping[str, object]]]
    """Stage name -> facts that its earlier iterations published, newest first."""
    description: EnvDescription | None
    """Spaces of the rollout's environment (stored in the run, so that replay needs no environment); None: text."""
    rollout: RolloutSource | None
    """The environment that the pipeline plays, for stages that play it too."""
    stop_requested: Callable[[], bool]
    """Whether this rank was asked to stop; ranks agree before anyone acts on it."""
    progress_due: Callable[[], bool]
    """Whether `progress_every` has passed since progress was last saved (asked of rank 0's clock)."""
    tick: Callable[[str, int, int], None]
    """Show progress: what, done, of how many."""

    element: int = 0
    """Which job of an array this is; its ranks share the element's blocks."""
    num_elements: int = 1
    """Jobs in the array."""
    policy_lag: int | None = None
    """How many updates the policy that acted may be older than the one that learns; None: any (offline)."""

    @property
    def owned(self) -> range:
        """Blocks of this rank."""
        size = self.comm.size * self.num_elements
        rank = self.comm.size * self.element + self.comm.rank
        return range(rank * self.num_blocks // size, (rank + 1) * self.num_blocks // size)
