"""`hpcrl status`: where a run stands, as text for a terminal; while it goes on and after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import evaluation
from hpcrl.report.disk import disk_use
from hpcrl.report.history import EPISODES_PER_MEAN, History
from hpcrl.report.job_lines import job_table
from hpcrl.report.outcome import holder_text, is_held, outcome_of
from hpcrl.report.queue import Scheduler, State, find_scheduler
from hpcrl.report.record import RunRecord, StageRecord, read_stage
from hpcrl.report.wording import bytes_text, count_text, number_text, path_text, plural, seconds_text
from hpcrl.segments import segment_of
from hpcrl.stages import Stage
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.stage_folder import StageFolder

_NEWEST = 24
"""Iterations that are looked at: enough for means, few enough for a run of any length."""
_MEAN_OF = 10
"""Iterations whose mean duration foretells the end."""


_LABEL_WIDTH = 11
_DISK_SECONDS = 0.15
"""How long files are counted; a run of a million files takes longer to count than a person waits."""
_MOST_ITERATIONS = 3
"""Unfinished iterations that are shown of a run played as jobs, which work on several at once."""


def print_status(path: Path) -> int:
    """Prints where the run stands, asking the scheduler if this machine has one; returns 0.

    Raises: InputError when `path` holds no run.
    """
    print(status_text(Path(path), find_scheduler(Path(path))))
    return 0


def status_text(path: Path, scheduler: Scheduler | None = None) -> str:
    """The status in lines.

    Args: scheduler: asked about jobs that have not ended; None: their state is told from files alone.
    Raises: InputError when `path` holds no run; CorruptFileError naming a damaged document.
    """
    record = RunRecord.read(path, newest=_NEWEST, scheduler=scheduler)
    lines = [
        ("run", f"{record.pipeline.name}  {path}"),
        ("state", outcome_of(record).sentence),
        *_iterations(record),
        *_jobs(record),
        ("launches", _launches(record)),
        ("lease", holder_text(record)),
        *_results(record),
        *_expected_end(record),
        ("disk", _disk(record)),
        ("next", _next(record)),
    ]
    width = max(_LABEL_WIDTH, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:<{width}} {text}".rstrip() for name, text in lines)


def current_iterations(record: RunRecord) -> list[int]:
    """Iterations that are being worked on, or the one that comes next; the last one when the run is done.

    A run played as jobs works on several at once: those after the newest finished one that have begun.
    """
    last = record.pipeline.num_iterations - 1
    finished = record.finished_iterations()
    newest = record.iterations[-1] if record.iterations else 0
    if outcome_of(record).state == "done" or newest not in finished:
        begun = [number for number in record.iterations if number > (finished[-1] if finished else -1)]
        several = record.jobs is not None and len(begun) > 1 and outcome_of(record).state != "done"
        return begun[:_MOST_ITERATIONS] if several else [newest]
    return [min(newest + 1, last)]


def _iterations(record: RunRecord) -> list[tuple[str, str]]:
    """Each iteration that is worked on, and its stages."""
    segments = segment_of(record.pipeline) if record.jobs is not None else {}
    lines = []
    for number in current_iterations(record):
        published = record.of_iteration(number)
        # Blocks and stages may have been published since the record was read; each is asked once more, in order.
        lines.append(("iteration", f"{number + 1} of {count_text(record.pipeline.num_iterations)}"))
        unfinished: set[str] = set()  # segments: each works on its own first unfinished stage
        for stage in record.due(number):
            segment = segments[stage.name].name if segments else ""
            folder = record.run.stage(number, stage.name)
            done = published.get(stage.name) or read_stage(folder)
            state = "waiting" if segment in unfinished else _state_of_next(record, segment, number)
            lines.append((f"  {stage.name}", _done(done) if done is not None else _unfinished(record, folder, state)))
            unfinished |= {segment} if done is None else set()
    return lines


def _done(record: StageRecord) -> str:
    removed = ", files removed by retention" if record.is_removed else ""
    return f"done {seconds_text(record.seconds)}, {bytes_text(record.manifest.bytes)}{removed}"


def _unfinished(record: RunRecord, folder: StageFolder, state: str) -> str:
    details = []
    attempts = folder.attempts()
    if attempts:
        details.append(f"attempt {attempts[-1]}")
    parts = folder.parts()
    if parts:
        details.append(f"{len(parts)} of {record.pipeline.num_blocks} blocks published")
    progress = _progress(folder)
    if progress:
        details.append(progress)
    return f"{state} ({', '.join(details)})" if details else state


def _state_of_next(record: RunRecord, segment: str, iteration: int) -> str:
    """How the first unfinished stage of a segment stands, if it has one."""
    if record.jobs is None:
        return "running" if is_held(record) else "unfinished"
    states = record.jobs.states(segment, iteration)
    order: tuple[State, ...] = ("running", "suspended", "held", "requeued", "queued", "submitting")
    return next((state for state in order if state in states), "unfinished")


def _jobs(record: RunRecord) -> list[tuple[str, str]]:
    """What was submitted for the newest finished iteration and those after it, a line for each try."""
    if record.jobs is None:
        return []
    finished = record.finished_iterations()
    table = job_table(record.jobs, finished[-1] if finished else 0, record.read_at)
    lines = [("" if index else "jobs", line) for index, line in enumerate(table)] or [("jobs", "none submitted")]
    if record.jobs.silence:
        lines.append(("", f"(from files alone: {record.jobs.silence})"))
    if record.jobs.halted is not None:
        lines.append(("halted", record.jobs.halted))
    return lines


def _disk(record: RunRecord) -> str:
    use = disk_use(record.run.path, seconds=_DISK_SECONDS)
    if use.is_whole:
        return bytes_text(use.bytes)
    newest = f"the newest {count_text(use.iterations)} of {plural(len(record.iterations), 'iteration')}"
    return f"at least {bytes_text(use.bytes)} ({newest} counted)"


def _progress(folder: StageFolder) -> str:
    """The cursor of the newest saved progress; empty where there is none (any more)."""
    found = folder.load_progress()
    if found is None:
        return ""
    try:
        state = read_checkpoint(folder.path / found.folder, groups=(), verify=False).state
    except CorruptFileError:
        if folder.load_progress() != found:
            return _progress(folder)  # newer progress took its place while it was being read
        raise
    cursor = state.get("cursor", {})
    return f"saved at {', '.join(f'{name} {value}' for name, value in cursor.items() if not isinstance(value, bool))}"


def _launches(record: RunRecord) -> str:
    if not record.launches:
        return "none yet"
    newest = record.launches[-1]
    ranks = plural(int(newest.facts.get("ranks", 1)), "rank")
    job = f", job {newest.job}" if newest.job else ""
    started = datetime.fromtimestamp(newest.started).strftime("%Y-%m-%d %H:%M:%S")
    where = f"on {newest.facts.get('host')}{job} with {ranks}"
    return f"{count_text(record.num_launches)}; the newest {where}, started {started}"


def _results(record: RunRecord) -> list[tuple[str, str]]:
    history = History.of(record)
    lines = []
    means = [mean for mean in history.running_means() if mean is not None]
    if means:
        episodes = min(history.episodes, EPISODES_PER_MEAN)
        lines.append(("return", f"{number_text(means[-1])} (mean of the newest {plural(episodes, 'episode')})"))
    newest = newest_evaluation(record)
    if newest is not None:
        facts = newest.facts
        lines.append(
            (
                "evaluation",
                f"{number_text(float(facts['return_mean']))} after iteration {newest.iteration + 1} "
                f"({plural(len(facts['returns']), 'episode')}, {number_text(min(facts['returns']))} to "
                f"{number_text(max(facts['returns']))})",
            )
        )
    return lines


def newest_evaluation(record: RunRecord) -> StageRecord | None:
    """The newest published evaluation, however long ago."""
    stage: Stage | None = evaluation(record.pipeline)
    for number in reversed(record.iterations) if stage is not None else ():
        if stage is not None and stage.due(number):
            found = read_stage(record.run.stage(number, stage.name))
            if found is not None:
                return found
    return None


def _expected_end(record: RunRecord) -> list[tuple[str, str]]:
    """From the newest iterations, while somebody works on the run or will."""
    if outcome_of(record).state not in ("running", "queued") or (record.jobs and record.jobs.halted is not None):
        return []
    finished = record.finished_iterations()
    recent = (_ends_of_launch if record.jobs is None else _ends)(record, finished)[-(_MEAN_OF + 1) :]
    if len(recent) < 2:
        return []  # nothing to tell a duration from
    steps = [after - before for before, after in itertools.pairwise(recent)]
    # Of jobs the median: one long wait in the queue would spoil a mean.
    seconds = sum(steps) / len(steps) if record.jobs is None else sorted(steps)[len(steps) // 2]
    left = record.pipeline.num_iterations - 1 - finished[-1]
    stopping = evaluation(record.pipeline)
    early = ", unless its evaluation stops it before" if stopping is not None and stopping.stop_when else ""
    moment = recent[-1] + left * seconds
    if record.jobs is not None:  # the iteration under way may have waited long already
        moment = max(moment, record.read_at + (left - 1) * seconds)
    end = datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
    return [
        (
            "ends",
            f"about {end} ({seconds_text(seconds)} an iteration over the newest {len(steps)}, "
            f"{plural(left, 'iteration')} left){early}",
        )
    ]


def _ends(record: RunRecord, finished: Sequence[int]) -> list[float]:
    """When iterations were finished, oldest first."""
    return sorted(max(stage.ended for stage in record.of_iteration(number).values()) for number in finished)


def _ends_of_launch(record: RunRecord, finished: Sequence[int]) -> list[float]:
    """When the newest launch began its first stage, then when it finished iterations."""
    if not record.launches:
        return []
    launched = record.launches[-1].started
    begins = [stage.began for stage in record.stages if stage.began >= launched]
    return [*begins[:1], *(end for end in _ends(record, finished) if end > launched)]


def _next(record: RunRecord) -> str:
    state, name = outcome_of(record).state, path_text(record.run.path)
    if state == "done":
        return f"hpcrl report {name}"
    held = {entry.job for entry in record.jobs.tries if entry.counts()["held"]} if record.jobs is not None else set()
    if held:
        return f"scontrol release {' '.join(sorted(held))}"
    if state == "queued":
        return "nothing to do: its jobs start by themselves"
    if state == "running":
        return f"hpcrl {'report' if record.jobs is None else 'logs'} {name}"
    return record.resume_command or f"hpcrl run PIPELINE --run {name}"
