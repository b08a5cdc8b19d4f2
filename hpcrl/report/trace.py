"""One stored trajectory, step by step: what a run shows where nothing can be drawn."""

from __future__ import annotations

import numpy as np

from hpcrl.data import Ending, Trajectories
from hpcrl.report.drawing import BLUE, ORANGE, STAGE_COLORS, drawing, to_svg
from hpcrl.store.layout import iteration_name

_MOST_LINES = 6
"""More components than this would not be told apart."""


def trace_of(trajectory: Trajectories) -> str:
    """Observations, actions, rewards and the critic's values of a single trajectory."""
    begin = int(trajectory["episode_step"][0])
    steps = np.arange(begin, begin + trajectory.num_steps)
    rows = trajectory.num_steps
    with drawing(11.2, 3.3) as figure:
        (seen, done), (got, worth) = figure.subplots(2, 2, sharex=True)
        observations = trajectory.steps["observations"].reshape(rows, -1)
        for index in range(min(observations.shape[1], _MOST_LINES)):
            color = STAGE_COLORS[index % len(STAGE_COLORS)]
            seen.plot(steps, observations[:, index], linewidth=1.1, color=color, label=f"[{index}]")
        seen.legend(loc="upper left", ncols=_MOST_LINES, fontsize=7.5, handlelength=1.0, columnspacing=0.9)
        more = observations.shape[1] - _MOST_LINES
        seen.set_title("observations" + (f", the first {_MOST_LINES} of {more + _MOST_LINES}" if more > 0 else ""))
        actions = trajectory["actions"].reshape(rows, -1)
        for index in range(min(actions.shape[1], _MOST_LINES)):
            done.step(steps, actions[:, index], where="post", linewidth=0.9, color=STAGE_COLORS[index])
        done.set_title("actions")
        got.plot(steps, np.cumsum(trajectory["rewards"]), color=ORANGE)
        got.set(title="sum of rewards", xlabel="step of the episode")
        worth.plot(steps, trajectory["values"], color=BLUE)
        worth.set(title="value, as the critic saw it", xlabel="step of the episode")
        return to_svg(figure, "trace", "A stored trajectory: observations, actions, rewards and values by step")


def caption_of(trajectory: Trajectories, iteration: int) -> str:
    """Which trajectory it is."""
    ending = Ending(int(trajectory["ending"][0])).name.lower()
    return (
        f"Instead, the longest trajectory of {iteration_name(iteration)}'s stored rollout: lane "
        f"{int(trajectory['lane'][0])}, episode {int(trajectory['episode'][0])}, "
        f"{trajectory.num_steps} steps, {ending}."
    )
