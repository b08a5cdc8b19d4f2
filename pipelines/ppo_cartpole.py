"""PPO on CartPole, until it is solved: mean greedy return >= 475 in three evaluations in a row."""

from hpcrl import PPO, Advantage, Evaluate, Mlp, Pipeline, Reached, Rollout, Update


def ppo_cartpole(
    num_envs: int = 32,
    num_steps: int = 32,
    learning_rate: float = 1e-3,
    num_iterations: int = 100,
    seed: int = 1,
) -> Pipeline:
    """PPO on CartPole.

    Args:
        num_envs: environments stepped in parallel, over all blocks.
        num_steps: steps per environment and iteration.
        learning_rate: Adam step size at the first iteration.
        num_iterations: iterations at most; evaluation stops the run earlier.
        seed: key of all randomness.
    """
    return Pipeline(
        name="ppo-cartpole",
        num_iterations=num_iterations,
        seed=seed,
        models={"actor": Mlp(hidden=(64, 64))},
        stages=[
            Rollout(env="CartPole-v1", num_envs=num_envs, num_steps=num_steps),
            Advantage(gamma=0.98, gae_lambda=0.8),
            Update(PPO(num_epochs=10, num_minibatches=4, clip_range=0.2, learning_rate=learning_rate)),
            Evaluate(every=2, episodes=20, stop_when=Reached("return", 475, times=3)),
        ],
    )
