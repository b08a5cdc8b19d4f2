"""The Gantt chart: which stage ran when; launches, pauses and write-behind visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hpcrl.report.drawing import INK, MUTED, RED, STAGE_COLORS, drawing, time_scale, to_svg
from hpcrl.report.launches import Launch
from hpcrl.report.record import RunRecord, StageRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float64 = npt.NDArray[np.float64]

ZOOMED_ITERATIONS = 5
_MOST_BARS = 400
"""More stages than this are drawn as how busy each moment was; single bars would be thinner than a pixel."""
_MOMENTS = 500
_LEAST_PAUSE = 0.004
"""Pauses shorter than this share of the whole are not shaded."""


def whole_run(record: RunRecord) -> str:
    """All stages over wall time, from the first launch on."""
    names = [stage.name for stage in record.pipeline.stages]
    with drawing(11.2, 0.42 * len(names) + 1.15) as figure:
        axes = figure.subplots()
        begin, end = _bounds(record)
        scale, unit = time_scale(end - begin)
        # Jobs begin all the time; their starts are in the picture of the jobs.
        _mark_launches(axes, [launch for launch in record.launches if launch.place is None], begin, end, scale)
        if len(record.stages) <= _MOST_BARS:
            _draw_bars(axes, record.stages, names, begin, scale)
        else:
            _draw_busy(axes, record.stages, names, begin, end, scale)
        _finish(axes, names, f"wall time since the first launch, {unit}")
        axes.set_xlim(0, max((end - begin) / scale, 1e-3) * 1.005)
        axes.set_title("The whole run", pad=14)
        return to_svg(figure, "timeline", "Timeline of the whole run: stages, launches and pauses over wall time")


def newest_iterations(record: RunRecord) -> str:
    """The newest iterations, bar by bar; a thin bar after each says how long its writing went on behind."""
    names = [stage.name for stage in record.pipeline.stages]
    numbers = sorted({stage.iteration for stage in record.stages})[-ZOOMED_ITERATIONS:]
    shown = [stage for stage in record.stages if stage.iteration in numbers]
    begin = min(stage.began for stage in shown)
    with drawing(11.2, 0.42 * len(names) + 1.05) as figure:
        axes = figure.subplots()
        end = max(stage.published for stage in shown)
        scale, unit = time_scale(end - begin)
        for start, stop, number in _iteration_spans(shown, numbers):
            if number % 2:
                axes.axvspan((start - begin) / scale, (stop - begin) / scale, color="#f3f5f8", linewidth=0)
            middle = ((start + stop) / 2 - begin) / scale
            axes.annotate(
                f"iteration {number + 1}", (middle, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", color=MUTED, fontsize=8,
            )  # fmt: skip
        _draw_bars(axes, shown, names, begin, scale, with_writing=True)
        for launch in record.launches:
            if launch.place is None and begin < launch.started < end:
                axes.axvline((launch.started - begin) / scale, color=RED, linewidth=1.0)
        _finish(axes, names, f"wall time, {unit} (thin: written behind, until published)")
        axes.set_xlim(0, (end - begin) / scale * 1.005)
        return to_svg(figure, "zoom", f"Timeline of the newest {len(numbers)} iterations")


def _iteration_spans(shown: Sequence[StageRecord], numbers: Sequence[int]) -> list[tuple[float, float, int]]:
    """(began, ended, iteration) of each."""
    spans = []
    for number in numbers:
        stages = [stage for stage in shown if stage.iteration == number]
        spans.append((min(stage.began for stage in stages), max(stage.ended for stage in stages), number))
    return spans


def _bounds(record: RunRecord) -> tuple[float, float]:
    begins = [launch.started for launch in record.launches] + [stage.began for stage in record.stages]
    ends = [launch.last_sign for launch in record.launches] + [stage.published for stage in record.stages]
    return min(begins, default=record.read_at), max(ends, default=record.read_at)


def _draw_bars(
    axes: Axes, stages: Sequence[StageRecord], names: Sequence[str], begin: float, scale: float,
    *, with_writing: bool = False,
) -> None:  # fmt: skip
    for row, name in enumerate(names):
        mine = [stage for stage in stages if stage.stage == name]
        color = STAGE_COLORS[row % len(STAGE_COLORS)]
        bars = [((stage.began - begin) / scale, stage.seconds / scale) for stage in mine]
        axes.broken_barh(bars, (row - 0.32, 0.64), facecolor=color, edgecolor=color, linewidth=0.5)
        if with_writing:
            late = [
                ((stage.ended - begin) / scale, (stage.published - stage.ended) / scale)
                for stage in mine
                if stage.published > stage.ended
            ]
            axes.broken_barh(late, (row - 0.07, 0.14), facecolor=color, alpha=0.45, linewidth=0)


def _draw_busy(
    axes: Axes, stages: Sequence[StageRecord], names: Sequence[str], begin: float, end: float, scale: float
) -> None:
    """Per stage the share of each moment in which it computed, as the height of its row."""
    edges = np.linspace(begin, end, _MOMENTS + 1)
    for row, name in enumerate(names):
        busy = busy_shares([(stage.began, stage.ended) for stage in stages if stage.stage == name], edges)
        color = STAGE_COLORS[row % len(STAGE_COLORS)]
        top = row + 0.36
        # Rows count downwards: a full moment reaches from the row's foot to its head.
        heights = np.append(top - 0.72 * busy, top)
        axes.fill_between((edges - begin) / scale, top, heights, step="post", color=color, linewidth=0)


def busy_shares(spans: Sequence[tuple[float, float]], edges: Float64) -> Float64:
    """Share of each interval between edges that the spans cover, float64[len(edges) - 1] in [0, 1].

    Example:
        >>> busy_shares([(0.0, 1.0), (1.5, 2.0)], np.array([0.0, 1.0, 2.0, 3.0]))
        array([1. , 0.5, 0. ])
    """
    moments = np.maximum.accumulate(np.sort(np.array(spans).reshape(-1, 2), axis=0).reshape(-1))
    if not moments.size:
        return np.zeros(len(edges) - 1)
    seconds = np.zeros(len(moments))
    seconds[1::2] = np.cumsum(moments[1::2] - moments[::2])
    seconds[2::2] = seconds[1:-1:2]
    covered = np.interp(edges, moments, seconds)
    shares: Float64 = np.clip(np.diff(covered) / np.diff(edges), 0.0, 1.0)
    return shares


def _mark_launches(axes: Axes, launches: Sequence[Launch], begin: float, end: float, scale: float) -> None:
    """A line at each launch; the pause before it, when nobody worked on the run, is shaded."""
    for index, launch in enumerate(launches):
        x = (launch.started - begin) / scale
        axes.axvline(x, color=RED if index else INK, linewidth=1.0, alpha=0.8)
        if len(launches) <= 24:
            # Labels of launches close together would cover each other; the first of them is enough.
            gap = launch.started - launches[index - 1].started if index else end
            if gap > 0.05 * (end - begin):
                label = f"launch {launch.number}" + (" resumes" if index else "")
                axes.annotate(
                    label, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 3), textcoords="offset points",
                    color=RED if index else INK, fontsize=8,
                )  # fmt: skip
        if index and launch.started - launches[index - 1].last_sign > _LEAST_PAUSE * (end - begin):
            start = (launches[index - 1].last_sign - begin) / scale
            axes.axvspan(start, x, facecolor="#f7e9e7", edgecolor="#e7c9c5", hatch="///", linewidth=0)


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlabel(label)
