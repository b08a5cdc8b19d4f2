"""The soak: a run of many jobs on a cluster where everything goes wrong, and the bits of an undisturbed one at the end.

HPCRL_SOAK_EVENTS and HPCRL_SOAK_SEED make it longer or another one; HPCRL_SOAK_LOG is where the log goes, else beside
the run in the test's folder. On two idle cores it takes seven minutes.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import pytest

from hpcrl.launch.submission import Run
from hpcrl.store.ledger import Ledger
from hpcrl.store.machine import machine_facts
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import hpcrl
from tests.pipelines.test_kill import assert_same
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.disturbing import KINDS, Disturber, Event, draw_events
from tests.slurm.watching import Watch, job_processes, label

EVENTS = int(os.environ.get("HPCRL_SOAK_EVENTS", "24"))
SEED = int(os.environ.get("HPCRL_SOAK_SEED", "1"))
PIPELINE = "tests/pipelines/meshes.py"
SITE = """
name = "dev-cluster"
[limits]
signal_lead_seconds = 30
retries = 6           # as many failures as here in ten minutes, a cluster has in a year
[resources]
time_minutes = 10
"""
LONGEST_RUN_SECONDS = 1200.0
LONGEST_WAIT_FOR_A_VICTIM_SECONDS = 15.0
_POLL_SECONDS = 0.3

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def log_file() -> Iterator[TextIO | None]:
    """The log that HPCRL_SOAK_LOG names, for all soaks together."""
    path = os.environ.get("HPCRL_SOAK_LOG")
    with ExitStack() as stack:
        yield None if path is None else stack.enter_context(open(path, "w", encoding="utf-8"))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], log_file: TextIO | None, tmp_path: Path) -> Iterator[Say]:
    """Prints past pytest's capture and into the log."""
    with ExitStack() as stack:
        log = log_file or stack.enter_context(open(tmp_path / "soak.log", "w", encoding="utf-8"))

        def print_line(line: str) -> None:
            print(line, file=log, flush=True)
            with capsys.disabled():
                print(line, flush=True)

        yield print_line


@pytest.fixture(autouse=True)
def _no_survivors(request: pytest.FixtureRequest) -> Iterator[None]:
    """A soak that failed leaves no process to the next one."""
    yield
    if "cluster" in request.fixturenames:
        for pid in job_processes(request.getfixturevalue("cluster")):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Scene:
    """One run that is disturbed."""

    door: str
    policy_lag: int
    array: int
    num_events: int

    @property
    def num_iterations(self) -> int:
        """Two events befall each, and the last two end in peace."""
        return max(6, 2 + self.num_events // 2)

    @property
    def options(self) -> tuple[object, ...]:
        """Of hpcrl run, wherever it plays."""
        shape = ("--play-world", "play", "--array", self.array, "--policy-lag", self.policy_lag)
        return (PIPELINE, *shape, "--num-iterations", self.num_iterations)


@pytest.mark.soak
@pytest.mark.timeout(2 * LONGEST_RUN_SECONDS)
@pytest.mark.parametrize(
    "scene",
    [
        Scene("sbatch", policy_lag=1, array=3, num_events=EVENTS),
        Scene("slurm", policy_lag=0, array=2, num_events=max(1, EVENTS // 2)),
    ],
    ids=lambda scene: scene.door,
)
def test_a_run_on_a_cluster_where_everything_goes_wrong(
    scene: Scene, cluster: DevCluster, say: Say, tmp_path: Path
) -> None:
    undisturbed, run, site = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "site.toml"
    done = hpcrl("run", *scene.options, "--on", "here", "--run", undisturbed, timeout=600)
    assert done.code == 0, done.output
    site.write_text(SITE)
    submission = (*scene.options, "--mesh", "main.dp=2", "--on", scene.door)
    facts = machine_facts(1)
    say(f"# soak of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: 'hpcrl run {' '.join(map(str, submission))}' on a")
    say(f"# cluster of 4 nodes, {scene.num_events} events drawn from seed {SEED}")
    say(f"# {facts['cpu']}, {os.cpu_count()} cores for all nodes, hpcrl {facts['versions']['hpcrl']}")
    say("# seconds  what happens, and below it what followed")
    campaign = Campaign(cluster, run, say)
    done = hpcrl("run", *submission, "--site", site, "--run", run, SLURM_CONF=cluster.environment["SLURM_CONF"])
    assert done.code == 0, done.output
    campaign.follow(draw_events(f"{SEED} {scene.door}", scene.num_events), scene.num_iterations - 2)
    say(f"{campaign.seconds:9.1f}  the run is over, by itself")
    campaign.wait_until_the_queue_is_empty()
    campaign.wait_for_survivors()
    jobs = report(campaign, scene, run)
    assert_same(run, undisturbed)
    assert published_files(run) == published_files(undisturbed)
    say("# compared with the undisturbed run: the same bits, every shard there once, nothing left over")
    say(f"# {campaign.seconds:.0f} s in all")
    assert sum(campaign.happened.values()) == scene.num_events
    assert jobs >= (scene.array + 1) * scene.num_iterations


def test_a_seed_draws_the_same_events_and_every_kind() -> None:
    events = draw_events("1 sbatch", 24)
    assert events == draw_events("1 sbatch", 24)
    assert events != draw_events("2 sbatch", 24)
    kinds = Counter((event.kind, event.variant) for event in events)
    assert kinds == Counter({(kind, variant): 1 for kind in KINDS for variant in (False, True)})


class Campaign:
    """The events of one run, one after another; nobody else does anything for it."""

    def __init__(self, cluster: DevCluster, run: Path, say: Say) -> None:
        self.cluster, self.run, self.say = cluster, run, say
        self.watch = Watch(cluster, run)
        self.disturber = Disturber(cluster, self.watch)
        self.happened: Counter[str] = Counter()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def follow(self, events: Sequence[Event], num_iterations: int) -> None:
        """Lets all events happen, spread over the first iterations, then waits until the run is over.

        Raises: AssertionError.
        """
        to_come = deque(events)
        while to_come:
            reached = num_iterations * sum(self.happened.values()) // len(events)
            while self.iterations_done < reached and not self.is_over():
                self._pass(_POLL_SECONDS)
            event = to_come.popleft()
            self._pass(event.after_seconds)
            if not self._strike(event):
                to_come.append(event)  # later there will be somebody
            assert not self.is_over(), f"the run was over {len(to_come)} events too early"
        while not self.is_over():
            self._pass(1.0)

    @property
    def iterations_done(self) -> int:
        """How far the run has got: updates that are published."""
        run = RunFolder(self.run)
        return sum(run.stage(iteration, "update").is_done() for iteration in run.iterations())

    def is_over(self) -> bool:
        """Whether the run has reached its end. Raises: AssertionError when it halted, or takes too long."""
        handle = Run(self.run)
        assert handle.halted() is None, handle.halted()
        assert self.seconds < LONGEST_RUN_SECONDS, f"not over after {self.seconds:.0f} s:\n{handle.status()}"
        return handle.is_finished()

    def wait_until_the_queue_is_empty(self) -> None:
        """No job of the run is left behind: none waits for ever, none has to be cancelled by a person."""
        deadline = time.monotonic() + 90.0
        while True:
            self._pass(1.0)
            if not self.watch.left():
                break
            assert time.monotonic() < deadline, f"left behind: {', '.join(map(label, self.watch.left()))}"
        self.say(f"{self.seconds:9.1f}  no job is left in the queue")

    def wait_for_survivors(self) -> None:
        """On nodes that were cut off, processes may still be at work; the comparison is with what they leave."""
        deadline = time.monotonic() + 240.0
        for words in self.disturber.end_what_is_due(everything=True):
            self.say(f"{self.seconds:9.1f}  {words}")
        while survivors := job_processes(self.cluster):
            assert time.monotonic() < deadline, f"{len(survivors)} processes of jobs do not end: {survivors}"
            time.sleep(_POLL_SECONDS)
        self.say(f"{self.seconds:9.1f}  no process of a job is left on a node")

    def _strike(self, event: Event) -> bool:
        """Waits for somebody whom the event may befall; False when there is nobody for long."""
        deadline = time.monotonic() + LONGEST_WAIT_FOR_A_VICTIM_SECONDS
        while not self.is_over() and time.monotonic() < deadline:
            moment = self.seconds
            words = self.disturber.strike(event)
            if words is not None:
                self.happened[event.kind] += 1
                number = sum(self.happened.values())
                self.say(f"{moment:9.1f}  {number:2d} {event.kind}: {words}")
                return True
            self._pass(_POLL_SECONDS)
        return False

    def _pass(self, seconds: float) -> None:
        """Lets time pass; what changes in the queue is told, and what lasts ends when its time has come."""
        deadline = time.monotonic() + seconds
        while True:
            self.watch.look()
            told = self.watch.changes()
            if told:
                self.say(f"{self.seconds:9.1f}     {'; '.join(told)}")
            for words in self.disturber.end_what_is_due():
                self.say(f"{self.seconds:9.1f}     {words}")
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)


def report(campaign: Campaign, scene: Scene, run: Path) -> int:
    """Tells the totals; returns the number of jobs (array elements) that were started."""
    started = [job for job in campaign.watch.accounting() if job.started is not None]
    tries = [one for found in Ledger(run).all_tries().values() for one in found]
    restarts = sum(campaign.watch.restarts.values())
    campaign.say(f"# {len(started)} jobs, put back into the queue {restarts} times; by their last state:")
    campaign.say(f"#   {_counts(Counter(job.state for job in started))}")
    campaign.say(
        f"# {len(tries)} tries at {len({one.unit for one in tries})} units of {scene.num_iterations} iterations"
    )
    campaign.say(f"# {sum(campaign.happened.values())} events: {_counts(campaign.happened)}")
    missing = [kind for kind in KINDS if not campaign.happened[kind]]
    if missing:
        campaign.say(f"#   of too few to have any: {', '.join(missing)}")
    return len(started)


def published_files(path: Path) -> dict[str, list[str]]:
    """Stage of an iteration -> names of its published files; one that was counted twice stands there twice."""
    run = RunFolder.open(path)
    found = {}
    for stage in [stage for iteration in run.iterations() for stage in run.stages(iteration)]:
        manifest = stage.manifest()
        assert manifest is not None, f"{stage.iteration}/{stage.stage} is not published"
        found[f"{stage.iteration}/{stage.stage}"] = sorted(Path(file.name).name for file in manifest.files)
    return found


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
