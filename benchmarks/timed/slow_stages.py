"""Stages that do their work and then last at least so many seconds: stand-ins for long rollouts and long updates."""

from __future__ import annotations

import dataclasses
import time

from hpcrl import PPO, Advantage, Mesh, Mlp, Pipeline, Rollout, Update
from hpcrl.stages import StageContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowRollout(Rollout):
    """A rollout that takes `seconds`."""

    seconds: float = 20.0

    def run(self, context: StageContext) -> None:
        time.sleep(self.seconds)
        super().run(context)


@dataclasses.dataclass(frozen=True)
class SlowUpdate(Update):
    """An update that takes `seconds`."""

    seconds: float = 20.0

    def run(self, context: StageContext) -> None:
        time.sleep(self.seconds)
        super().run(context)


def slow_stages(policy_lag: int = 0, num_iterations: int = 6, seconds: float = 20.0) -> Pipeline:
    """PPO on CartPole in two worlds, each stage of which lasts.

    Args:
        policy_lag: how many updates late a rollout acts.
        num_iterations: iterations.
        seconds: how long a rollout and an update last at least.
    """
    return Pipeline(
        name="slow-stages",
        num_iterations=num_iterations,
        models={"actor": Mlp(hidden=(64, 64))},
        stages=[
            SlowRollout(env="CartPole-v1", num_envs=16, num_steps=32, mesh="play", seconds=seconds),
            Advantage(),
            SlowUpdate(PPO(num_epochs=1, num_minibatches=2), seconds=seconds),
        ],
        meshes={"play": Mesh(world="play")},
        policy_lag=policy_lag,
    )
