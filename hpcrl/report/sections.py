"""What the report says, part by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

from hpcrl.report import curves, film, job_timeline, machines, markup, settings, timeline, trace
from hpcrl.report.disk import bytes_by_stage, bytes_on_disk
from hpcrl.report.history import EPISODES_PER_MEAN, History, evaluation_mean
from hpcrl.report.job_lines import HEAD, job_rows
from hpcrl.report.record import RunRecord
from hpcrl.report.wording import bytes_text, count_text, number_text, plural, seconds_text
from hpcrl.store.layout import iteration_name


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading, its markup."""

    name: str
    title: str
    content: str


def headline(record: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers on top: (name, value, remark)."""
    history = History.of(record)
    total = record.pipeline.num_iterations
    finished = len(record.finished_iterations())
    pauses = _wall_seconds(record) - history.working_seconds
    found = [
        ("iterations", count_text(finished), f"of {count_text(total)}"),
        (_steps_name(record), count_text(history.steps), f"{count_text(history.episodes)} episodes ended"),
        _best(history),
        (
            "working time",
            seconds_text(history.working_seconds),
            f"{plural(len(record.launches), 'launch')}"
            + (f", {seconds_text(pauses)} paused" if pauses > 0.05 * history.working_seconds + 1.0 else ""),
        ),
        (
            "steps per second",
            number_text(history.steps / history.working_seconds if history.working_seconds > 0 else None),
            "over the working time",
        ),
        ("on disk", bytes_text(bytes_on_disk(record.run.path)), "the whole folder"),
    ]
    means = [mean for mean in history.running_means() if mean is not None]
    if means:
        found.insert(3, ("newest return", number_text(means[-1]), f"mean of {EPISODES_PER_MEAN} training episodes"))
    return found


def _best(history: History) -> tuple[str, str, str]:
    best = history.best_evaluation
    if best is not None and best.evaluation is not None:
        episodes = plural(len(best.evaluation["returns"]), "episode")
        return "best evaluation", number_text(evaluation_mean(best)), f"iteration {best.number + 1}, {episodes}"
    return "best evaluation", "–", "none published"


def _steps_name(record: RunRecord) -> str:
    return "environment steps" if record.pipeline.rollout is not None else "steps trained on"


def _wall_seconds(record: RunRecord) -> float:
    if not record.launches:
        return 0.0
    begin = min(launch.started for launch in record.launches)
    return max(launch.last_sign for launch in record.launches) - begin


def sections(record: RunRecord) -> list[Section]:
    """All parts, in the order of the page; those without content are left out."""
    made = [Section(name, title, content_of(record, name)) for name, title in TITLES.items()]
    return [section for section in made if section.content]


def content_of(record: RunRecord, name: str) -> str:
    """The markup of one part, without its heading; empty where the run has nothing to say there."""
    history = History.of(record)
    return _CONTENT[name](record, history)


def _learning(record: RunRecord, history: History) -> str:
    if not history.iterations:
        return markup.paragraph("Nothing is published yet.", "note")
    parts = []
    if history.episodes or history.evaluated:
        parts.append(markup.figure(curves.learning_curves(history, _steps_name(record))))
    elif record.pipeline.rollout is not None:
        parts.append(markup.paragraph("No episode has ended yet, so there are no returns to draw.", "note"))
    else:
        parts.append(markup.paragraph("Nothing is played here: the run learns from stored rollouts.", "note"))
    if history.evaluated:
        rows = [
            (
                row.number + 1,
                iteration_name(row.number),
                count_text(row.steps_so_far),
                number_text(evaluation_mean(row)),
                number_text(min(row.evaluation["returns"])),
                number_text(max(row.evaluation["returns"])),
                number_text(row.evaluation["length_mean"]),
            )
            for row in history.evaluated
            if row.evaluation is not None
        ]
        head = ("iteration", "folder", "steps", "mean return", "lowest", "highest", "mean length")
        parts.append(markup.folded(plural(len(rows), "evaluation"), markup.table(head, rows)))
    return "".join(parts)


def _film(record: RunRecord, history: History) -> str:
    made = film.film_of(record)
    parts = [markup.paragraph(made.caption, "note")]
    if made.pictures:
        addresses = ((f"step {step}", film.data_address(picture)) for step, picture in made.pictures)
        parts.insert(0, markup.strip(addresses))
    elif record.pipeline.rollout is not None and not film.is_image(record):
        stored = film.longest_trajectory(record)
        if stored is not None:
            parts += [markup.paragraph(trace.caption_of(*stored), "note"), markup.figure(trace.trace_of(stored[0]))]
    return "".join(parts)


def _timeline(record: RunRecord, history: History) -> str:
    if not record.stages:
        return ""
    parts = [markup.figure(timeline.whole_run(record)), markup.figure(timeline.newest_iterations(record))]
    rows = [
        (
            launch.number,
            datetime.fromtimestamp(launch.started, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            seconds_text(launch.last_sign - launch.started),
            launch.facts.get("ranks", ""),
            launch.facts.get("host", ""),
            launch.facts.get("job") or "",
            launch.command,
        )
        for launch in record.launches
    ]
    head = ("launch", "started (UTC)", "until its last published stage", "ranks", "host", "job", "command")
    parts.append(markup.folded(plural(len(rows), "launch"), markup.table(head, rows)))
    parts.append(
        markup.paragraph(
            "Bars are rank 0's computing. A red line is a launch that went on after a stop or a kill; the hatched "
            "pause before it begins at the last stage published.",
            "note",
        )
    )
    return "".join([*parts, *_jobs(record)])


def _jobs(record: RunRecord) -> list[str]:
    """The jobs' own picture and table, for a run that was played as jobs."""
    if record.jobs is None:
        return []
    figures = [job_timeline.whole_run(record.jobs, record.read_at), job_timeline.newest(record.jobs, record.read_at)]
    rows = job_rows(record.jobs.tries, record.read_at)
    note = (
        "A job waits for the jobs before it, then in the queue, then it runs; one that was requeued waits again. "
        "Numbers are iterations; an array's elements lie one below the other. What a job ran before it was requeued is "
        "drawn up to the last stage it published: it left no later sign."
    )
    silence = f" SLURM was not asked: {record.jobs.silence}." if record.jobs.silence else ""
    return [
        *(markup.figure(figure) for figure in figures if figure),
        markup.folded(plural(len(rows), "job"), markup.table(HEAD, rows)),
        markup.paragraph(note + silence, "note"),
    ]


def _throughput(record: RunRecord, history: History) -> str:
    if not history.iterations:
        return ""
    names = [stage.name for stage in record.pipeline.stages]
    totals = {name: sum(row.seconds.get(name, 0.0) for row in history.iterations) for name in names}
    computing = sum(totals.values()) or 1.0
    rows = []
    for name in names:
        seconds = [row.seconds[name] for row in history.iterations if name in row.seconds]
        if seconds:
            share = f"{100 * totals[name] / computing:.1f} %"
            mean = seconds_text(totals[name] / len(seconds))
            rows.append((name, len(seconds), mean, seconds_text(max(seconds)), seconds_text(totals[name]), share))
    head = ("stage", "times", "mean", "longest", "in all", "share of computing")
    return markup.figure(curves.throughput(history, names)) + markup.table(head, rows)


def _updates(record: RunRecord, history: History) -> str:
    statistics = curves.statistics_of(history)
    return markup.figure(curves.update_statistics(statistics)) if statistics else ""


def _configuration(record: RunRecord, history: History) -> str:
    rows = settings.settings_of(record.pipeline)
    changed = sum(row.origin == "chosen" for row in rows)
    note = (
        f"{plural(len(rows), 'value')}, {changed} of them other than the defaults (coloured); values in bold have no "
        "default."
    )
    cells = [(row.path, row.value, row.default if row.origin == "chosen" else "") for row in rows]
    shown = [index for index, row in enumerate(rows) if row.origin != "default"]
    head = ("field", "value", "default")
    short = markup.table(head, [cells[index] for index in shown], kinds=[rows[index].origin for index in shown])
    whole = markup.table(head, cells, kinds=[row.origin for row in rows])
    branched = record.document.get("branched_from")
    origin = (
        markup.paragraph(f"Branched from {branched['run']}, iteration {branched['iteration']}.") if branched else ""
    )
    return origin + markup.paragraph(note, "note") + short + markup.folded(f"all {len(rows)} values", whole)


def _machine(record: RunRecord, history: History) -> str:
    kinds = machines.machine_kinds(record)
    parts = [markup.paragraph(sentence, "warning") for sentence in machines.warnings_of(kinds)]
    for kind in kinds:
        facts = kind.facts
        rows = [
            ("hosts", ", ".join(sorted(kind.hosts))),
            ("processor", facts.get("cpu", "")),
            ("instruction set", " ".join(facts.get("instruction_set", ()))),
            ("compute threads per rank", facts.get("compute_threads", "")),
            ("system", facts.get("system", "")),
            ("versions", ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())),
            (
                "contributed",
                f"{plural(kind.stages, 'stage')}, iterations {kind.first_iteration + 1} to {kind.last_iteration + 1}",
            ),
        ]
        parts.append(markup.table(("", ""), rows))
    return "".join(parts)


def _disk(record: RunRecord, history: History) -> str:
    stages = bytes_by_stage(record)
    whole = bytes_on_disk(record.run.path)
    most = max([entry.published for entry in stages] + [1])
    kept = sum(entry.kept for entry in stages)
    rows = [
        f"<tr><td>{markup.text(entry.stage)}</td><td>{bytes_text(entry.kept)}</td><td>{bytes_text(entry.removed)}</td>"
        f"<td>{entry.files}</td><td>{markup.bar(entry.kept / most, entry.removed / most)}</td></tr>"
        for entry in stages
    ]
    head = "".join(f"<th>{name}</th>" for name in ("stage", "kept", "removed by retention", "files kept", ""))
    keep = record.pipeline.keep
    rule = (
        f"Kept: the newest {_all(keep.rollouts)} rollouts and {_all(keep.checkpoints)} checkpoints"
        + (f", every {keep.every}th checkpoint" if keep.every else "")
        + (", the best one" if keep.best else "")
        + f". Manifests, metrics and what is unfinished take {bytes_text(max(whole - kept, 0))} more."
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        + markup.paragraph(rule, "note")
    )


def _all(count: int | None) -> str:
    return "all" if count is None else str(count)


TITLES = {
    "learning": "Learning",
    "film": "An episode",
    "timeline": "Timeline",
    "throughput": "Throughput",
    "updates": "Updates",
    "configuration": "Configuration",
    "machine": "Machine",
    "disk": "Disk",
}
"""Anchor -> heading, in the order of the page."""

_CONTENT: dict[str, Callable[[RunRecord, History], str]] = {
    "learning": _learning,
    "film": _film,
    "timeline": _timeline,
    "throughput": _throughput,
    "updates": _updates,
    "configuration": _configuration,
    "machine": _machine,
    "disk": _disk,
}
