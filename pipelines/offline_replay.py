"""Train from another run's stored rollouts: no environment is played, none need be installed."""

from hpcrl import PPO, Advantage, Mlp, Pipeline, Update


def offline_replay(
    inputs: str = "runs/ppo-cartpole",
    gamma: float = 0.98,
    gae_lambda: float = 0.8,
    num_iterations: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 1,
) -> Pipeline:
    """Other advantages and a fresh network on the rollouts that a run kept.

    Args:
        inputs: run folder whose published rollouts are read, oldest first, again and again.
        gamma: discount per step.
        gae_lambda: 0: one-step TD error; 1: Monte Carlo return.
        num_iterations: passes over one rollout each.
        learning_rate: Adam step size at the first iteration.
        seed: key of all randomness.
    """
    return Pipeline(
        name="offline-replay",
        num_iterations=num_iterations,
        inputs=inputs,
        seed=seed,
        models={"actor": Mlp(hidden=(64, 64))},
        stages=[
            Advantage(gamma=gamma, gae_lambda=gae_lambda),
            Update(PPO(num_epochs=10, num_minibatches=4, learning_rate=learning_rate)),
        ],
    )
