"""`hpcrl status`: where a run stands, as text for a terminal; while it goes on and after."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import evaluation
from hpcrl.report.disk import bytes_on_disk
from hpcrl.report.history import EPISODES_PER_MEAN, History
from hpcrl.report.outcome import holder_text, is_held, outcome_of
from hpcrl.report.record import RunRecord, StageRecord, read_stage
from hpcrl.report.wording import bytes_text, count_text, number_text, plural, seconds_text
from hpcrl.stages import Stage
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.stage_folder import StageFolder

_NEWEST = 24
"""Iterations that are looked at: enough for means, few enough for a run of any length."""
_MEAN_OF = 10
"""Iterations whose mean duration foretells the end."""


def print_status(path: Path) -> int:
    """Prints where the run stands; returns 0.

    Raises: InputError when `path` holds no run.
    """
    print(status_text(Path(path)))
    return 0


def status_text(path: Path) -> str:
    """The status in lines.

    Raises: InputError when `path` holds no run; CorruptFileError naming a damaged document.
    """
    record = RunRecord.read(path, newest=_NEWEST)
    lines = [
        ("run", f"{record.pipeline.name}  {path}"),
        ("state", outcome_of(record).sentence),
        *_current_iteration(record),
        ("launches", _launches(record)),
        ("lease", holder_text(record)),
        *_results(record),
        *_expected_end(record),
        ("disk", bytes_text(bytes_on_disk(path))),
        ("next", _next(record)),
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in lines)


def current_iteration(record: RunRecord) -> int:
    """The iteration that is being worked on, or comes next; the last one when the run is done."""
    newest = record.iterations[-1] if record.iterations else 0
    finished = outcome_of(record).state == "done" or newest not in record.finished_iterations()
    return newest if finished else min(newest + 1, record.pipeline.num_iterations - 1)


def _current_iteration(record: RunRecord) -> list[tuple[str, str]]:
    number = current_iteration(record)
    published = record.of_iteration(number)
    # Blocks and stages may have been published since the record was read; each is asked once more, in order.
    lines = [("iteration", f"{number + 1} of {count_text(record.pipeline.num_iterations)}")]
    is_first_unfinished = True
    for stage in record.due(number):
        folder = record.run.stage(number, stage.name)
        done = published.get(stage.name) or read_stage(folder)
        text = _done(done) if done is not None else _unfinished(record, folder, is_first_unfinished)
        is_first_unfinished = is_first_unfinished and done is not None
        lines.append((f"  {stage.name}", text))
    return lines


def _done(record: StageRecord) -> str:
    removed = ", files removed by retention" if record.is_removed else ""
    return f"done {seconds_text(record.seconds)}, {bytes_text(record.manifest.bytes)}{removed}"


def _unfinished(record: RunRecord, folder: StageFolder, is_next: bool) -> str:
    held = is_held(record)
    state = ("running" if held else "unfinished") if is_next else "waiting"
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
    job = f", job {newest.facts['job']}" if newest.facts.get("job") else ""
    started = datetime.fromtimestamp(newest.started).strftime("%Y-%m-%d %H:%M:%S")
    return f"{len(record.launches)}; the newest on {newest.facts.get('host')}{job} with {ranks}, started {started}"


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
    """From the mean of the newest iterations of the newest launch, while somebody works on the run."""
    finished = record.finished_iterations()
    if not is_held(record) or not finished or not record.launches:
        return []
    launched = record.launches[-1].started
    begins = [stage.began for stage in record.stages if stage.began >= launched]
    ends = [max(stage.ended for stage in record.of_iteration(number).values()) for number in finished]
    recent = [*begins[:1], *(end for end in ends if end > launched)][-(_MEAN_OF + 1) :]
    if len(recent) < 2:
        return []  # this launch has not finished an iteration yet
    mean = (recent[-1] - recent[0]) / (len(recent) - 1)
    left = record.pipeline.num_iterations - 1 - finished[-1]
    stopping = evaluation(record.pipeline)
    early = ", unless its evaluation stops it before" if stopping is not None and stopping.stop_when else ""
    end = datetime.fromtimestamp(recent[-1] + left * mean).strftime("%Y-%m-%d %H:%M:%S")
    return [
        (
            "ends",
            f"about {end} ({seconds_text(mean)} an iteration over the newest {len(recent) - 1}, "
            f"{plural(left, 'iteration')} left){early}",
        )
    ]


def _next(record: RunRecord) -> str:
    if is_held(record) or outcome_of(record).state == "done":
        return f"hpcrl report {record.run.path}"
    return record.resume_command or "hpcrl run PIPELINE --run " + str(record.run.path)
