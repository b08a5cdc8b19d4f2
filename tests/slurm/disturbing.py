"""Disturbing a run's jobs: what a cluster, its administrators and its other users do to them, drawn from a seed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from hpcrl.scheduler.jobs import Job
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.watching import Watch, job_processes, label, ranks_of

T = TypeVar("T")

Kind = Literal[
    "node crashes",
    "node is cut off",
    "preempted",
    "requeued",
    "running job cancelled",
    "queued job cancelled",
    "signal USR1",
    "signal TERM",
    "rank killed",
    "controller down",
    "suspended",
    "held",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""A node that crashes takes its jobs' processes with it; on one that is cut off they go on."""

_MOST_NODES_DOWN = 2
"""Of four, so that the rest has somewhere to go on."""


@dataclass(frozen=True)
class Event:
    """Something that will happen to a run."""

    kind: Kind
    after_seconds: float
    """Since the one before, or since the run had got as far as it should."""
    lasts_seconds: float
    """Until the node is back, the controller up, the job resumed or released, the urgent job done."""
    choice: float
    """From [0, 1): which of those whom it could befall."""
    variant: bool
    """Of two ways in which it may happen; see Disturber."""


def draw_events(seed: str, count: int, *, longest_pause_seconds: float = 4.0) -> list[Event]:
    """The events of a campaign: the same ones for the same seed, every kind as often as any other, or once more."""
    numbers = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += numbers.sample(KINDS, len(KINDS))
    variants = {kind: numbers.random() < 0.5 for kind in KINDS}
    events = []
    for kind in kinds[:count]:
        variants[kind] = not variants[kind]  # in turn, so that a short campaign has both too
        events.append(
            Event(
                kind,
                after_seconds=numbers.uniform(0.5, longest_pause_seconds),
                lasts_seconds=numbers.uniform(2.0, 12.0),
                choice=numbers.random(),
                variant=variants[kind],
            )
        )
    return events


class Disturber:
    """Lets events befall the jobs of one run, and ends what lasts when its time has come."""

    def __init__(self, cluster: DevCluster, watch: Watch) -> None:
        self.cluster, self.watch = cluster, watch
        self._later: list[tuple[float, str, Callable[[], object]]] = []
        """(when, what it is, how)."""
        self._nodes_down: set[int] = set()
        self._actions: dict[Kind, Callable[[Event], str | None]] = {
            "node crashes": self._crash,
            "node is cut off": self._crash,
            "preempted": self._preempt,
            "requeued": self._requeue,
            "running job cancelled": self._cancel_running,
            "queued job cancelled": self._cancel_queued,
            "signal USR1": self._signal,
            "signal TERM": self._signal,
            "rank killed": self._kill_rank,
            "controller down": self._stop_controller,
            "suspended": self._suspend,
            "held": self._hold,
        }

    def strike(self, event: Event) -> str | None:
        """Lets an event happen; returns what it did and to whom, None when there is nobody now whom it could befall."""
        return self._actions[event.kind](event)

    def end_what_is_due(self, *, everything: bool = False) -> list[str]:
        """Brings back nodes and jobs whose time has come (or all that are away); returns what was done."""
        now = time.monotonic()
        due = [one for one in self._later if everything or one[0] <= now]
        self._later = [one for one in self._later if one not in due]
        for _, _, action in due:
            action()
        return [words for _, words, _ in due]

    def _crash(self, event: Event) -> str | None:
        """Variant: the controller is told at once; else it finds out after its SlurmdTimeout."""
        running = self._running()
        if not running or len(self._nodes_down) >= _MOST_NODES_DOWN:
            return None
        job = _chosen(running, event)
        number, whole = int(job.nodes.removeprefix("n")), event.kind == "node crashes"
        self._nodes_down.add(number)
        self.cluster.crash_node(number, whole=whole, noticed=event.variant)

        def start() -> None:
            self.cluster.start_node(number)
            self._nodes_down.discard(number)

        # A node is missed after ten seconds: some come back before that, most do not.
        self._after(event.lasts_seconds * 2, f"n{number} is back", start)
        told = ", the controller is told" if event.variant else ""
        left = f", {len(job_processes(self.cluster, job.nodes))} processes live on" if not whole else ""
        return f"n{number} with {label(job)}{told}{left}"

    def _preempt(self, event: Event) -> str | None:
        """Variant: an urgent job wants the whole cluster; else one node."""
        running = self._running()
        if not running:
            return None
        job = _chosen(running, event)
        where = ["--nodes=4"] if event.variant and not self._nodes_down else [f"--nodelist={job.nodes}"]
        seconds = event.lasts_seconds / 4
        self.cluster.submit(
            f"sleep {seconds:.1f}", "--partition=urgent", "--exclusive", "--job-name=urgent", "--time=1", *where
        )
        return f"an urgent job of {seconds:.1f} s wants {where[0].removeprefix('--')}, where {label(job)} runs"

    def _requeue(self, event: Event) -> str | None:
        job = self._one_of(self._running(), event)
        return None if job is None else self._ask(f"scontrol requeue {label(job)}", "scontrol", "requeue", job.id)

    def _cancel_running(self, event: Event) -> str | None:
        """Variant: of an array all elements; else one."""
        return self._cancel(self._running(), event)

    def _cancel_queued(self, event: Event) -> str | None:
        """Variant: of an array all elements; else one."""
        return self._cancel(self.watch.in_state("PENDING"), event)

    def _cancel(self, candidates: Sequence[Job], event: Event) -> str | None:
        job = self._one_of(candidates, event)
        if job is None:
            return None
        if event.variant and job.array_id is not None:
            return self._ask(f"scancel array {label(job)}", "scancel", job.array_id)
        return self._ask(f"scancel {label(job)}, {job.state.lower()}", "scancel", job.id)

    def _signal(self, event: Event) -> str | None:
        job = self._one_of(self._running(), event)
        name = event.kind.removeprefix("signal ")
        if job is None:
            return None
        words = ("scancel", f"--signal={name}", "--batch", job.id)
        return self._ask(f"scancel --signal={name} --batch {label(job)}", *words)

    def _kill_rank(self, event: Event) -> str | None:
        rank = self._one_of(ranks_of(self.cluster), event)
        if rank is None:
            return None
        try:
            os.kill(rank.pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return f"SIGKILL to {rank}"

    def _stop_controller(self, event: Event) -> str | None:
        """Variant: a rank dies meanwhile."""
        self.cluster.stop_controller()
        half = event.lasts_seconds / 2
        time.sleep(half)
        killed = self._kill_rank(event) if event.variant else None
        time.sleep(half)
        self.cluster.start_controller()
        return f"for {event.lasts_seconds:.1f} s" + (f"; meanwhile {killed}" if killed else "")

    def _suspend(self, event: Event) -> str | None:
        job = self._one_of(self._running(), event)
        return None if job is None else self._for_a_while("suspend", "resume", job, event)

    def _hold(self, event: Event) -> str | None:
        job = self._one_of(self.watch.in_state("PENDING"), event)
        return None if job is None else self._for_a_while("hold", "release", job, event)

    def _for_a_while(self, verb: str, undo: str, job: Job, event: Event) -> str | None:
        did = self._ask(f"scontrol {verb} {label(job)}", "scontrol", verb, job.id)
        if did is not None:
            # Refused where something else has ended or requeued the job meanwhile: then it needs no more.
            self._after(event.lasts_seconds, f"{undo} {job.id}", lambda: self.cluster.run("scontrol", undo, job.id))
        return did

    def _after(self, seconds: float, words: str, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, words, action))

    def _running(self) -> list[Job]:
        self.watch.look()
        return [job for job in self.watch.in_state("RUNNING") if job.nodes.removeprefix("n").isdecimal()]

    def _one_of(self, candidates: Sequence[T], event: Event) -> T | None:
        return _chosen(candidates, event) if candidates else None

    def _ask(self, words: str, *command: str) -> str | None:
        """A command of SLURM; None when it refuses, because the job has ended since we looked."""
        done = self.cluster.run(*command)
        return words if done.returncode == 0 else None


def _chosen(candidates: Sequence[T], event: Event) -> T:
    return candidates[int(event.choice * len(candidates))]
