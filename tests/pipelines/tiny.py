"""A pipeline of a few seconds that takes every path of the big ones: episodes that go on, epochs, evaluations."""

from typing import Literal

from hpcrl import PPO, Advantage, Evaluate, Keep, Mlp, Pipeline, Rollout, Update


def tiny(
    env: str = "CartPole-v1",
    num_envs: int = 8,
    num_steps: int = 24,
    num_iterations: int = 4,
    num_epochs: int = 2,
    num_minibatches: int = 3,
    normalize_values: Literal["running", "popart"] | None = "popart",
    normalize_observations: bool = True,
    recompute: bool = False,
    checkpoint_every: int = 1,
    progress_every_minutes: float = 10.0,
    keep_all: bool = True,
    seed: int = 7,
) -> Pipeline:
    """A tiny PPO."""
    advantage = Advantage(gamma=0.97, gae_lambda=0.9, recompute="epoch" if recompute else None)
    ppo = PPO(
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
        learning_rate=3e-3,
        entropy_coef=0.01,
        value_clip_range=0.2,
        normalize_values=normalize_values,
    )
    update = Update(ppo, advantage=advantage) if recompute else Update(ppo)
    return Pipeline(
        name="tiny",
        num_iterations=num_iterations,
        seed=seed,
        models={"actor": Mlp(hidden=(16,), normalize_observations=normalize_observations)},
        stages=[
            Rollout(env=env, num_envs=num_envs, num_steps=num_steps),
            *([] if recompute else [advantage]),
            update,
            Evaluate(every=2, episodes=3, max_steps=40),
        ],
        checkpoint_every=checkpoint_every,
        progress_every_minutes=progress_every_minutes,
        keep=Keep(rollouts=None, checkpoints=None) if keep_all else Keep(rollouts=1, checkpoints=1, every=None),
    )
