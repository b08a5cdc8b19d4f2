"""PPO on Atari Pong from pixels (ALE; needs the extra `atari`)."""

from hpcrl import PPO, Advantage, Cnn, Evaluate, Keep, Pipeline, Rollout, Update


def ppo_pong(
    num_envs: int = 32,
    num_steps: int = 64,
    learning_rate: float = 5e-4,
    num_iterations: int = 1500,
    bf16: bool = False,
    seed: int = 1,
) -> Pipeline:
    """PPO on Pong, 84 x 84 grey frames, stacks of 4, frame skip 4.

    Args:
        num_envs: environments stepped in parallel, over all blocks.
        num_steps: steps per environment and iteration.
        learning_rate: Adam step size at the first iteration; falls linearly to 0 at the last.
        num_iterations: iterations of num_envs * num_steps agent steps.
        bf16: matrix products in bfloat16; parameters and sums stay float32.
        seed: key of all randomness.
    """
    return Pipeline(
        name="ppo-pong",
        num_iterations=num_iterations,
        seed=seed,
        models={"actor": Cnn(inference_autocast="bf16" if bf16 else None)},
        stages=[
            Rollout(
                env="ALE/Pong-v5",
                num_envs=num_envs,
                num_steps=num_steps,
                env_options={"repeat_action_probability": 0.0},
            ),
            Advantage(gamma=0.99, gae_lambda=0.95),
            Update(
                PPO(
                    num_epochs=3,
                    num_minibatches=8,
                    learning_rate=learning_rate,
                    clip_range=0.1,
                    entropy_coef=0.01,
                    value_coef=0.5,
                    autocast="bf16" if bf16 else None,
                )
            ),
            Evaluate(every=100, episodes=4, greedy=False),
        ],
        keep=Keep(rollouts=2, checkpoints=2, every=250),
    )
