"""PPO on a MuJoCo task (needs the extra `mujoco`)."""

from hpcrl import PPO, Advantage, Evaluate, Keep, Mlp, Pipeline, Rollout, Update


def ppo_mujoco(
    env: str = "HalfCheetah-v5",
    num_envs: int = 8,
    num_steps: int = 256,
    learning_rate: float = 3e-4,
    num_iterations: int = 489,
    seed: int = 1,
) -> Pipeline:
    """PPO with normalised observations and value targets.

    Args:
        env: HalfCheetah-v5, Hopper-v5 or another Gymnasium MuJoCo task.
        num_envs: environments stepped in parallel, over all blocks.
        num_steps: steps per environment and iteration.
        learning_rate: Adam step size at the first iteration; falls linearly to 0 at the last.
        num_iterations: iterations of num_envs * num_steps steps; 489 make one million with the defaults.
        seed: key of all randomness.
    """
    return Pipeline(
        name="ppo-mujoco",
        num_iterations=num_iterations,
        seed=seed,
        models={"actor": Mlp(hidden=(64, 64), normalize_observations=True)},
        stages=[
            Rollout(env=env, num_envs=num_envs, num_steps=num_steps),
            Advantage(gamma=0.99, gae_lambda=0.95),
            Update(
                PPO(
                    num_epochs=10,
                    num_minibatches=32,
                    learning_rate=learning_rate,
                    clip_range=0.2,
                    normalize_values="running",
                )
            ),
            Evaluate(every=50, episodes=8),
        ],
        keep=Keep(rollouts=2, checkpoints=2, every=100),
    )
