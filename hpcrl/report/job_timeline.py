"""The Gantt chart of a run's jobs, by segment: waiting for jobs before them, in the queue, running, requeued."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hpcrl.report.drawing import INK, RED, STAGE_COLORS, drawing, time_scale, to_svg
from hpcrl.report.jobs import Jobs, JobTry
from hpcrl.report.timeline import busy_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["inputs", "queue", "requeue", "run"]

NEWEST_TRIES = 24
"""Tries in the picture of the newest ones, which is drawn when there are more."""
_MOST_BARS = 400
"""More bars than this are drawn as how busy each moment was; single bars would be thinner than a pixel."""
_MOST_LANES = 16
"""Elements of an array that get a lane each; of larger arrays the lanes would be thinner than a pixel."""
_MOMENTS = 500
_LEAST_NAMED = 0.02
"""What ran for less than this share of the picture has no room for its number."""
_QUEUE, _REQUEUE, _INPUTS = "#9aa7b5", RED, "#c3ccd6"
# A row counts downwards: waiting above, running below it, so that jobs submitted ahead stay apart from those that run.
_WAIT_TOP, _WAIT_HEIGHT = -0.42, 0.2
_RUN_TOP, _RUN_HEIGHT = -0.16, 0.54


@dataclasses.dataclass(frozen=True)
class Bar:
    """One stretch of one job's life; seconds since 1970."""

    segment: str
    kind: Kind
    began: float
    ended: float
    lane: int
    """Place in its array, 0 where there is none."""
    lanes: int
    iteration: int | None


def whole_run(jobs: Jobs, now: float) -> str:
    """All jobs that were submitted, from the first one on; empty where there are none."""
    bars = bars_of(jobs.tries, now)
    return _draw(bars, _segments(jobs), "jobs", "The jobs of the whole run") if bars else ""


def newest(jobs: Jobs, now: float) -> str:
    """The newest jobs bar by bar; empty where the whole run shows them as well."""
    if len(jobs.tries) <= NEWEST_TRIES:
        return ""
    by_time = sorted(jobs.tries, key=lambda entry: entry.started or entry.submitted)
    bars = bars_of(by_time[-NEWEST_TRIES:], now)
    return _draw(bars, _segments(jobs), "newest-jobs", f"The newest {NEWEST_TRIES} of {len(jobs.tries):,} jobs")


def _segments(jobs: Jobs) -> list[str]:
    """As they were first submitted; a segment has the same place and colour in every picture."""
    first: dict[str, tuple[float, int]] = {}
    for index, entry in enumerate(jobs.tries):
        place = (entry.submitted, index)
        first[entry.unit.segment] = min(first.get(entry.unit.segment, place), place)
    return sorted(first, key=lambda segment: first[segment])


def bars_of(tries: Iterable[JobTry], now: float) -> list[Bar]:
    """What is drawn of each job; whatever goes on ends now."""
    return [bar for entry in tries for bar in _bars_of_try(entry, now) if bar.ended > bar.began]


def _bars_of_try(entry: JobTry, now: float) -> Iterable[Bar]:
    lanes = len(entry.elements) if len(entry.elements) <= _MOST_LANES else 1
    for index, element in enumerate(entry.elements):
        stretches: list[tuple[Kind, float, float]] = [("inputs", entry.submitted, entry.eligible)]
        waiting_since, kind = entry.eligible, "queue"
        for span in element.spans:
            stretches.append(("requeue" if kind == "requeue" else "queue", waiting_since, span.started))
            stretches.append(("run", span.started, now if span.ended is None else span.ended))
            waiting_since, kind = stretches[-1][2], "requeue"
        if element.state in ("queued", "requeued", "held"):
            last: Kind = "inputs" if element.waits_for_others else "requeue" if element.spans else "queue"
            stretches.append((last, waiting_since, now))
        for what, began, ended in stretches:
            lane = index if lanes > 1 else 0
            yield Bar(entry.unit.segment, what, began, ended, lane, lanes, entry.unit.iteration)


def _draw(bars: Sequence[Bar], order: Sequence[str], name: str, title: str) -> str:
    colors = {segment: STAGE_COLORS[place % len(STAGE_COLORS)] for place, segment in enumerate(order)}
    segments = [segment for segment in order if any(bar.segment == segment for bar in bars)]
    one_by_one = len(bars) <= _MOST_BARS
    begin, end = min(bar.began for bar in bars), max(bar.ended for bar in bars)
    scale, unit = time_scale(end - begin)
    with drawing(11.2, 0.6 * len(segments) + 1.25) as figure:
        axes = figure.subplots()
        for row, segment in enumerate(segments):
            mine = [bar for bar in bars if bar.segment == segment]
            if one_by_one:
                _draw_bars(axes, mine, row, colors[segment], begin, scale)
            else:
                _draw_busy(axes, mine, row, colors[segment], begin, end, scale)
        if one_by_one:
            _name_iterations(axes, bars, segments, begin, end, scale)
        _legend(axes, with_inputs=one_by_one)
        axes.set_yticks(range(len(segments)), segments)
        axes.set_ylim(len(segments) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(f"wall time since the first of them was submitted, {unit}")
        axes.set_xlim(0, max((end - begin) / scale, 1e-3) * 1.005)
        axes.set_title(title, pad=8)
        return to_svg(figure, name, f"{title}: waiting, in the queue, running and requeued, by segment")


def _draw_bars(axes: Axes, bars: Sequence[Bar], row: int, color: str, begin: float, scale: float) -> None:
    for kind, (face, top, height) in _looks(color).items():
        mine = [bar for bar in bars if bar.kind == kind]
        for lanes in sorted({bar.lanes for bar in mine}):
            for lane in range(lanes):
                spans = [
                    ((bar.began - begin) / scale, (bar.ended - bar.began) / scale)
                    for bar in mine
                    if (bar.lanes, bar.lane) == (lanes, lane)
                ]
                place = (row + top + height * lane / lanes, height / lanes * (0.9 if lanes > 1 else 1.0))
                axes.broken_barh(
                    spans, place, facecolor=face, edgecolor="white" if kind == "run" else face, linewidth=0.4
                )


def _looks(color: str) -> dict[Kind, tuple[str, float, float]]:
    """Colour, top and height of each kind of bar."""
    return {
        "inputs": (_INPUTS, _WAIT_TOP + _WAIT_HEIGHT * 0.38, _WAIT_HEIGHT * 0.24),
        "queue": (_QUEUE, _WAIT_TOP, _WAIT_HEIGHT),
        "requeue": (_REQUEUE, _WAIT_TOP, _WAIT_HEIGHT),
        "run": (color, _RUN_TOP, _RUN_HEIGHT),
    }


def _draw_busy(
    axes: Axes, bars: Sequence[Bar], row: int, color: str, begin: float, end: float, scale: float
) -> None:  # fmt: skip
    """Per kind the share of each moment in which any job was in it, as the height of its part of the row."""
    edges = np.linspace(begin, end, _MOMENTS + 1)
    for kind, (face, top, height) in _looks(color).items():
        if kind == "inputs":
            continue  # some job always waits for those before it
        busy = busy_shares([(bar.began, bar.ended) for bar in bars if bar.kind == kind], edges)
        foot = row + top + height
        axes.fill_between(
            (edges - begin) / scale, foot, np.append(foot - height * busy, foot), step="post", color=face, linewidth=0
        )


def _name_iterations(
    axes: Axes, bars: Sequence[Bar], segments: Sequence[str], begin: float, end: float, scale: float
) -> None:
    """The iteration's number in the middle of what ran for it, where that is wide enough."""
    units: dict[tuple[str, int], list[Bar]] = {}
    for bar in bars:
        if bar.kind == "run" and bar.iteration is not None:
            units.setdefault((bar.segment, bar.iteration), []).append(bar)
    for (segment, iteration), mine in units.items():
        began, ended = min(bar.began for bar in mine), max(bar.ended for bar in mine)
        if ended - began < _LEAST_NAMED * (end - begin):
            continue
        x, y = ((began + ended) / 2 - begin) / scale, segments.index(segment) + _RUN_TOP + _RUN_HEIGHT / 2
        # Between the lanes of an array shines the page: there the number gets a ground of its own.
        several = len(mine) > 1
        ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0} if several else None
        axes.text(
            x, y, str(iteration + 1), color=INK if several else "white", bbox=ground, ha="center", va="center",
            fontsize=8,
        )  # fmt: skip


def _legend(axes: Axes, *, with_inputs: bool) -> None:
    from matplotlib.patches import Patch

    looks = [("in the queue", _QUEUE), ("requeued", _REQUEUE), ("runs", STAGE_COLORS[0])]
    if with_inputs:
        looks.insert(0, ("waits for jobs before it", _INPUTS))
    axes.legend(
        handles=[Patch(color=color, label=label) for label, color in looks],
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(looks), handlelength=1.2, columnspacing=1.4,
        borderaxespad=0.2,
    )  # fmt: skip
