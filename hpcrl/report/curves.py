"""Figures over iterations: learning curves, throughput, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcrl.report.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    STAGE_COLORS,
    drawing,
    mark_points,
    plain_numbers,
    time_scale,
    to_svg,
)
from hpcrl.report.history import EPISODES_PER_MEAN, History, evaluation_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float64 = npt.NDArray[np.float64]

_MOST_DOTS = 1500
"""More episodes than this are shown as a band only: each dot is an element of the page."""
_FIRST = (
    "policy_loss",
    "value_loss",
    "loss",
    "entropy",
    "approximate_kl",
    "clip_fraction",
    "explained_variance",
    "gradient_norm",
    "learning_rate",
)
_NOT_STATISTICS = ("seconds", "steps", "checkpoint", "early_stop", "optimizer_steps")


def learning_curves(history: History, steps_label: str) -> str:
    """Episode returns against steps and against working time, evaluations as points; there must be one of either."""
    with drawing(11.2, 3.6) as figure:
        by_steps, by_time = figure.subplots(1, 2, sharey=True)
        steps = [float(iteration.steps_so_far) for iteration in history.iterations]
        seconds = [iteration.working_seconds for iteration in history.iterations]
        scale, unit = time_scale(history.working_seconds)
        _draw_returns(by_steps, history, steps)
        _draw_returns(by_time, history, [second / scale for second in seconds])
        by_steps.set(title="Episode return", xlabel=steps_label, ylabel="undiscounted return")
        by_time.set(title="The same against working time", xlabel=f"working time, {unit}")
        plain_numbers(by_steps)
        handles, labels = by_steps.get_legend_handles_labels()
        if handles:
            by_steps.legend(handles[::-1], labels[::-1], loc="best")
        return to_svg(figure, "learning", "Learning curves: episode return against steps and working time")


def _draw_returns(axes: Axes, history: History, where: Sequence[float]) -> None:
    windows = [(x, newest) for x, newest in zip(where, history.newest_episodes(), strict=True) if newest]
    if windows:
        xs = [x for x, _ in windows]
        low, high = np.array([np.quantile(newest, (0.1, 0.9)) for _, newest in windows]).T
        axes.fill_between(xs, low, high, color=BLUE, alpha=0.13, linewidth=0, label="their middle 80 %")
        if history.episodes <= _MOST_DOTS:
            rows = zip(where, history.iterations, strict=True)
            dots = np.array([(x, value) for x, row in rows for value in row.returns])
            axes.plot(dots[:, 0], dots[:, 1], ".", color=BLUE, alpha=0.3, markersize=3, markeredgewidth=0)
        means = [float(np.mean(newest)) for _, newest in windows]
        axes.plot(xs, means, color=BLUE, label=f"mean of {EPISODES_PER_MEAN} episodes", **mark_points(means))
    evaluated = [(x, row) for x, row in zip(where, history.iterations, strict=True) if row.evaluation is not None]
    if evaluated:
        axes.plot(
            [x for x, _ in evaluated],
            [evaluation_mean(row) for _, row in evaluated],
            "D",
            color=ORANGE,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label="evaluation, mean",
        )


def throughput(history: History, stages: Sequence[str]) -> str:
    """Steps per second of the rollout and of the whole loop; where an iteration's time goes."""
    rows = history.iterations
    numbers = [row.number + 1 for row in rows]
    with drawing(11.2, 2.9) as figure:
        rates, shares = figure.subplots(1, 2)
        durations = history.durations()
        played = [(x, row.steps / row.seconds["rollout"]) for x, row in zip(numbers, rows, strict=True) if _plays(row)]
        looped = [
            (x, row.steps / took) for x, row, took in zip(numbers, rows, durations, strict=True) if took > 0 < row.steps
        ]
        for points, color, label in ((played, BLUE, "rollout alone"), (looped, GREEN, "whole iteration")):
            if points:
                rates.plot(*zip(*points, strict=True), color=color, label=label, **mark_points(points))
        rates.set(title="Steps per second", xlabel="iteration")
        rates.set_ylim(bottom=0)
        if played or looped:
            rates.legend(loc="best")
        below: Float64 = np.zeros(len(rows))
        for index, stage in enumerate(stages):
            seconds = np.array([row.seconds.get(stage, 0.0) for row in rows])
            color = STAGE_COLORS[index % len(STAGE_COLORS)]
            if len(rows) <= 120:
                shares.bar(numbers, seconds, bottom=below, width=0.85, color=color, label=stage)
            else:
                shares.fill_between(numbers, below, below + seconds, step="mid", color=color, linewidth=0, label=stage)
            below = below + seconds
        shares.set(title="Seconds of computing per iteration", xlabel="iteration")
        shares.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
        return to_svg(figure, "throughput", "Throughput: steps per second, and seconds of each stage per iteration")


def _plays(row: Any) -> bool:
    return bool(row.seconds.get("rollout", 0.0) > 0 and row.steps > 0)


def statistics_of(history: History) -> dict[str, list[tuple[int, float]]]:
    """Numbers that the training stage published, by name: (iteration counted from 1, value) where it is finite."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in history.iterations:
        for name, value in row.update.items():
            if name not in _NOT_STATISTICS and _is_number(value):
                found.setdefault(name, []).append((row.number + 1, float(value)))
    known = [name for name in _FIRST if name in found]
    return {name: found[name] for name in [*known, *(name for name in found if name not in known)]}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def update_statistics(statistics: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One small figure for each statistic of the updates."""
    columns = 4
    rows = -(-len(statistics) // columns)
    with drawing(11.2, 1.75 * rows + 0.15) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes in grid.flat[len(statistics) :]:
            axes.set_axis_off()
        for axes, (name, points) in zip(grid.flat, statistics.items(), strict=False):
            axes.plot(*zip(*points, strict=True), color=PURPLE, linewidth=1.3, **mark_points(points))
            axes.set_title(name.replace("_", " "))
            axes.tick_params(labelbottom=True, labelsize=8)
            axes.locator_params(axis="y", nbins=4)
        return to_svg(figure, "statistics", "Statistics of the updates: " + ", ".join(statistics))
