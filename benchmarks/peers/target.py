"""The target of the CartPole benchmark, written once for all peers: how a policy is evaluated, when it has arrived.

Mean greedy return of at least 475 over 20 episodes, in three evaluations in a row; an evaluation at the first
iteration's end at or after every 2,560 environment steps.  The clock starts at the first environment step and stops
in evaluations.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

TARGET_RETURN = 475.0
TIMES_IN_A_ROW = 3
NUM_EPISODES = 20
EVALUATE_EVERY_STEPS = 2_560
GIVE_UP_STEPS = 200_000

# Evaluations draw their episodes from seeds no training uses: trainings take seeds below this.
_FIRST_EVALUATION_SEED = 1_000_000

Policy = Callable[[np.ndarray], np.ndarray]
"""Greedy actions i64[n] for observations f32[n, 4]."""


def greedy_mean_return(policy: Policy, *, seed: int, num_episodes: int = NUM_EPISODES) -> float:
    """Mean return of the first episode of each of `num_episodes` lanes."""
    env = CartPoleVectorEnv(num_envs=num_episodes)
    observations, _ = env.reset(seed=seed)
    returns, running = np.zeros(num_episodes), np.ones(num_episodes, dtype=bool)
    while running.any():
        observations, rewards, terminated, truncated, _ = env.step(policy(observations))
        returns += rewards * running
        running &= ~(terminated | truncated)
    env.close()
    return float(returns.mean())


@dataclass
class Trial:
    """One training on its way to the target: keeps the clock, calls the evaluations, knows when to stop.

    Call `start` at the first environment step, `after_iteration` whenever an iteration, its update included, is done.
    """

    tool: str
    seed: int
    evaluations: list[dict[str, float]] = field(default_factory=list)
    reached: bool = False
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    steps: int = 0
    _resumed_at: float | None = None
    _next_evaluation: int = EVALUATE_EVERY_STEPS

    def start(self) -> None:
        """Starts the clock."""
        self._resumed_at = time.perf_counter()

    def after_iteration(self, steps: int, policy: Policy) -> bool:
        """Evaluates if it is time; True when training should end (target reached, or given up)."""
        now = time.perf_counter()
        if self._resumed_at is None:
            raise RuntimeError("after_iteration: the clock has not been started; call start() first")
        if steps >= self._next_evaluation:
            self.train_seconds += now - self._resumed_at
            self.steps = steps
            self._evaluate(policy)
            self._next_evaluation = (steps // EVALUATE_EVERY_STEPS + 1) * EVALUATE_EVERY_STEPS
            self._resumed_at = time.perf_counter()
            self.evaluate_seconds += self._resumed_at - now
        return self.reached or steps >= GIVE_UP_STEPS

    def _evaluate(self, policy: Policy) -> None:
        seed = _FIRST_EVALUATION_SEED + 1_000 * self.seed + len(self.evaluations)
        mean_return = greedy_mean_return(policy, seed=seed)
        self.evaluations.append(
            {"steps": self.steps, "train_seconds": round(self.train_seconds, 4), "mean_return": mean_return}
        )
        latest = self.evaluations[-TIMES_IN_A_ROW:]
        self.reached = len(latest) == TIMES_IN_A_ROW and all(e["mean_return"] >= TARGET_RETURN for e in latest)

    def print_record(self, **extra: object) -> None:
        """Prints what happened as one line of JSON."""
        record = {
            "tool": self.tool,
            "seed": self.seed,
            "reached": self.reached,
            "steps": self.steps,
            "train_seconds": self.train_seconds,
            "evaluate_seconds": self.evaluate_seconds,
            "seconds_with_evaluations": self.train_seconds + self.evaluate_seconds,
            "process_cpu_seconds": sum(os.times()[:2]),
            "evaluations": self.evaluations,
            **extra,
        }
        print(json.dumps(record), flush=True)
