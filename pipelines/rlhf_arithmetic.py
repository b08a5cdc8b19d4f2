"""Language model from nothing: imitation of noisy demonstrations, then PPO with a critic against exact grades."""

from hpcrl import Advantage, Keep, Pipeline, Update
from hpcrl.algorithms.language_ppo import LanguagePPO, ValueRegression
from hpcrl.algorithms.sft import SFT
from hpcrl.envs.text import ModularSums
from hpcrl.models.language import Architecture, CharacterTokenizer, LanguageModel
from hpcrl.models.language.settings import Stopping
from hpcrl.rewards import TaskReward
from hpcrl.stages import (
    CopyWeights,
    Demonstrate,
    EvaluateText,
    Generate,
    LogProbs,
    Phase,
    Reached,
    Refine,
    Score,
    Values,
)


def rlhf_arithmetic(
    sft_iterations: int = 200,
    ppo_iterations: int = 100,
    num_prompts: int = 192,
    hidden_size: int = 64,
    num_layers: int = 2,
    sft_learning_rate: float = 3e-3,
    learning_rate: float = 5e-4,
    critic_learning_rate: float = 1e-3,
    kl_coef: float = 0.01,
    noise: float = 0.12,
    seed: int = 1,
) -> Pipeline:
    """SFT, then PPO, on sums modulo 7 worked out step by step.

    Args:
        sft_iterations: Iterations of imitation, each of 256 demonstrations in two optimiser steps.
        ppo_iterations: Iterations of PPO after it.
        num_prompts: Problems answered in each of these.
        hidden_size: Width of actor, critic and reference.
        num_layers: Their depth.
        sft_learning_rate: Adam's step size while imitating.
        learning_rate: Of the policy in PPO.
        critic_learning_rate: Of the critic.
        kl_coef: Weight of the divergence from the imitating policy, in the rewards.
        noise: Share of demonstrated steps that are wrong, and of those that are written twice.
        seed: Of everything that is random.
    """
    task = ModularSums(wrong_step=noise, repeated_step=noise)
    held_out = ModularSums(split="test")
    tokenizer = CharacterTokenizer(task.alphabet)
    architecture = Architecture.llama(
        tokenizer.vocab_size, hidden_size=hidden_size, num_layers=num_layers, max_positions=64
    )
    stopping = Stopping(max_tokens=36)
    imitate, improve = Phase(stop=sft_iterations), Phase(sft_iterations)
    last_imitation = Phase(sft_iterations - 1, sft_iterations)
    return Pipeline(
        name="rlhf-arithmetic",
        num_iterations=sft_iterations + ppo_iterations,
        models={
            "actor": LanguageModel(architecture=architecture, tokenizer=tokenizer),
            "reference": LanguageModel(architecture=architecture, tokenizer=tokenizer),
            "critic": LanguageModel(architecture=architecture, tokenizer=tokenizer, heads=("value",)),
        },
        stages=[
            Demonstrate(task=task, num_prompts=256, phase=imitate),
            Update(SFT(learning_rate=sft_learning_rate, num_minibatches=2), name="imitate", phase=imitate),
            CopyWeights(target="reference", name="start_reference", phase=last_imitation),
            CopyWeights(target="critic", name="start_critic", phase=last_imitation),
            Generate(task=task, num_prompts=num_prompts, stopping=stopping, phase=improve),
            Score(task=task, reward=TaskReward(task), phase=improve),
            LogProbs(phase=improve),
            Values(phase=improve),
            Refine(kl_coef=kl_coef, phase=improve),
            Advantage(gamma=1.0, gae_lambda=1.0, phase=improve),
            Update(
                ValueRegression(learning_rate=critic_learning_rate, num_epochs=2, num_minibatches=2),
                model="critic",
                name="update_critic",
                phase=improve,
            ),
            Update(LanguagePPO(learning_rate=learning_rate, num_epochs=2, num_minibatches=2), phase=improve),
            EvaluateText(
                task=held_out,
                reward=TaskReward(held_out),
                num_prompts=128,
                every=20,
                stopping=stopping,
                stop_when=Reached("return", 0.98, times=2),
            ),
        ],
        seed=seed,
        checkpoint_every=10,
        keep=Keep(every=None),
    )
