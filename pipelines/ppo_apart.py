"""PPO whose rollouts are an array of CPU jobs and whose updates are jobs of their own, say on a GPU partition."""

from hpcrl import PPO, Advantage, Evaluate, Mesh, Mlp, Pipeline, Reached, Rollout, Update


def ppo_apart(
    env: str = "CartPole-v1",
    num_envs: int = 64,
    num_steps: int = 40,
    array: int = 2,
    policy_lag: int = 0,
    num_iterations: int = 40,
    seed: int = 1,
) -> Pipeline:
    """PPO in two worlds: `hpcrl run pipelines/ppo_apart.py --on slurm` submits their jobs; here and under mpiexec, one.

    Args:
        env: a Gymnasium id with a vector of numbers as observation.
        num_envs: environments stepped in parallel, over all blocks.
        num_steps: steps per environment and iteration.
        array: rollout jobs of an iteration; they share the blocks.
        policy_lag: rollouts act so many updates late and play while those learn; 0: they take turns.
        num_iterations: iterations at most; evaluation stops the run earlier.
        seed: key of all randomness.
    """
    return Pipeline(
        name="ppo-apart",
        num_iterations=num_iterations,
        seed=seed,
        models={"actor": Mlp(hidden=(64, 64), normalize_observations=True)},
        stages=[
            Rollout(env=env, num_envs=num_envs, num_steps=num_steps, mesh="play"),
            Advantage(gamma=0.98, gae_lambda=0.98),
            Update(PPO(num_epochs=3, num_minibatches=8, learning_rate=4e-3, value_coef=1.0)),
            Evaluate(every=1, episodes=20, stop_when=Reached("return", 475, times=3)),
        ],
        meshes={"play": Mesh(world="play", array=array)},
        policy_lag=policy_lag,
    )
