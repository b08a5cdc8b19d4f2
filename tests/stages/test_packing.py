"""Packing a rollout: every recorded step lies where a plain walk over the lanes would put it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.data import Ending, Trajectories
from hpcrl.stages.packing import FinishedEpisodes, RolloutBuffer

STACK = 3


class Script:
    """A block's rollout written down first: what happens at (t, lane), and what a walk over it must give."""

    def __init__(self, events: np.ndarray, frame_stack: int) -> None:
        # 0: an ordinary step; 1: terminated; 2: truncated; a step after an end may be 3: autoreset's dummy step.
        self.events, self.frame_stack = events, frame_stack
        self.num_steps, self.num_lanes = events.shape
        self.counter = 0

    def picture(self) -> np.ndarray:
        self.counter += 1
        return (
            np.full((2, 2), self.counter % 251, np.uint8) if self.frame_stack > 1 else np.array([self.counter], float)
        )

    def play(self) -> tuple[Trajectories, FinishedEpisodes, np.ndarray, list[dict]]:
        lanes = range(self.num_lanes)
        current = [self.first() for _ in lanes]
        start_return = np.arange(self.num_lanes) * 100.0
        start_step = np.arange(self.num_lanes, dtype=np.int64) + 7
        buffer = RolloutBuffer(self.num_steps, np.stack(current), self.frame_stack, start_return)
        walks: list[list[dict]] = [[] for _ in lanes]
        opened = [self.open(current[lane], start_return[lane], start_step[lane], 0) for lane in lanes]
        for t in range(self.num_steps):
            actions = np.arange(self.num_lanes) + 10 * t
            rewards = np.arange(self.num_lanes, dtype=np.float32) + t
            buffer.record_decision(t, np.stack(current), actions, rewards + 0.5, rewards + 0.25)
            finals, nexts = [], []
            for lane in lanes:
                event = self.events[t, lane]
                if event != 3:
                    opened[lane]["observations"].append(current[lane])
                    opened[lane]["actions"].append(actions[lane])
                    opened[lane]["rewards"].append(rewards[lane])
                after = self.first() if event == 3 else self.slide(current[lane])
                finals.append(after)
                if event in (1, 2):
                    walks[lane].append(self.close(opened[lane], after, Ending(event)))
                    dummy_follows = t + 1 < self.num_steps and self.events[t + 1, lane] == 3
                    after = after if dummy_follows else self.first()
                    opened[lane] = self.open(after, 0.0, 0, opened[lane]["episode"] + 1)
                if event == 3:
                    opened[lane]["lead"] = after
                nexts.append(after)
            events = self.events[t]
            buffer.record_outcome(t, np.stack(nexts), rewards, events == 1, events == 2, np.stack(finals), events != 3)
            current = nexts
        running = np.array([opened[lane]["return"] + sum(opened[lane]["rewards"]) for lane in lanes])
        for lane in lanes:
            if opened[lane]["rewards"]:
                walks[lane].append(self.close(opened[lane], current[lane], Ending.CUT))
        packed, episodes, running_given = buffer.pack(
            np.arange(self.num_lanes, dtype=np.int64) + 40, np.arange(self.num_lanes, dtype=np.int64) * 10, start_step
        )
        np.testing.assert_allclose(running_given, running)
        return packed, episodes, running, [trajectory | {"lane": lane} for lane in lanes for trajectory in walks[lane]]

    def first(self) -> np.ndarray:
        return np.stack([self.picture()] * self.frame_stack) if self.frame_stack > 1 else self.picture()

    def slide(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation[1:], self.picture()[None]]) if self.frame_stack > 1 else self.picture()

    @staticmethod
    def open(lead: np.ndarray, so_far: float, step: int, episode: int) -> dict:
        return {"lead": lead, "return": so_far, "step": step, "episode": episode} | {
            name: [] for name in ("observations", "actions", "rewards")
        }

    @staticmethod
    def close(opened: dict, final: np.ndarray, ending: Ending) -> dict:
        return opened | {"final": final, "ending": ending}


@st.composite
def scripts(draw: st.DrawFn) -> np.ndarray:
    """Events [num_steps, lanes]; a dummy step (3) only right after an end, and always or never per script."""
    num_steps, num_lanes = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    dummies = draw(st.booleans())
    events = np.zeros((num_steps, num_lanes), int)
    for lane in range(num_lanes):
        for t in range(num_steps):
            if dummies and t > 0 and events[t - 1, lane] in (1, 2):
                events[t, lane] = 3
            else:
                events[t, lane] = draw(st.sampled_from([0, 0, 0, 1, 2]))
    return events


@pytest.mark.parametrize("frame_stack", [1, STACK])
@given(events=scripts())
@settings(max_examples=80, deadline=None)
def test_packed_steps_equal_a_walk_over_the_lanes(frame_stack: int, events: np.ndarray) -> None:
    script = Script(events, frame_stack)
    packed, episodes, _, walks = script.play()
    assert packed.num_trajectories == len(walks)
    for i, walk in enumerate(walks):
        rows = slice(packed.offsets[i], packed.offsets[i + 1])
        assert packed["rewards"][rows].tolist() == [float(reward) for reward in walk["rewards"]]
        assert packed["actions"][rows].tolist() == [int(action) for action in walk["actions"]]
        assert packed["ending"][i] == walk["ending"]
        assert packed["lane"][i] == walk["lane"] + 40
        assert packed["episode"][i] == walk["lane"] * 10 + walk["episode"]
        assert packed["episode_step"][i] == walk["step"]
        if frame_stack == 1:
            np.testing.assert_array_equal(packed["observations"][rows], np.stack(walk["observations"]))
            np.testing.assert_array_equal(packed["final_observations"][i], walk["final"])
        else:
            frames = packed.ragged["frames"][i]
            stacks = [frames[t : t + frame_stack] for t in range(len(walk["rewards"]) + 1)]
            np.testing.assert_array_equal(np.stack(stacks[:-1]), np.stack(walk["observations"]))
            np.testing.assert_array_equal(stacks[-1], walk["final"])
    finished = [walk for walk in walks if walk["ending"] != Ending.CUT]
    assert episodes.lengths.tolist() == [walk["step"] + len(walk["rewards"]) for walk in finished]
    np.testing.assert_allclose(episodes.returns, [walk["return"] + sum(walk["rewards"]) for walk in finished])


def test_a_lane_of_dummy_steps_only_has_no_trajectory() -> None:
    buffer = RolloutBuffer(1, np.zeros((2, 3)), 1, np.array([5.0, 0.0]))
    buffer.record_decision(0, np.zeros((2, 3)), np.zeros(2, int), np.zeros(2), np.zeros(2))
    flags = np.zeros(2, bool)
    buffer.record_outcome(0, np.ones((2, 3)), np.ones(2), flags, flags, np.ones((2, 3)), np.array([False, True]))
    packed, episodes, running = buffer.pack(np.arange(2), np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert packed["lane"].tolist() == [1]
    assert len(episodes.returns) == 0
    assert running.tolist() == [5.0, 1.0]
