"""Language model from nothing: imitation of noisy demonstrations, then DPO on its own best and worst responses."""

from typing import Literal

from hpcrl import Keep, Pipeline, Update
from hpcrl.algorithms.preference import DPO
from hpcrl.algorithms.sft import SFT
from hpcrl.envs.text import ModularSums
from hpcrl.models.language import Architecture, CharacterTokenizer, LanguageModel
from hpcrl.models.language.settings import Stopping
from hpcrl.rewards import TaskReward
from hpcrl.stages import CopyWeights, Demonstrate, EvaluateText, Generate, LogProbs, Phase, Prefer, Score


def dpo_arithmetic(
    sft_iterations: int = 200,
    dpo_iterations: int = 100,
    num_prompts: int = 48,
    samples_per_prompt: int = 4,
    beta: float = 0.1,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    hidden_size: int = 64,
    num_layers: int = 2,
    sft_learning_rate: float = 3e-3,
    learning_rate: float = 2e-4,
    noise: float = 0.12,
    seed: int = 1,
) -> Pipeline:
    """SFT, then iterative DPO, on sums modulo 7 worked out step by step.

    Args:
        sft_iterations: Iterations of imitation, each of 256 demonstrations in two optimiser steps.
        dpo_iterations: Iterations of DPO after it; preferences are made anew in each.
        num_prompts: Problems answered in each of these.
        samples_per_prompt: Responses to each; the best and the worst make a pair where they differ.
        beta: Weight of staying near the imitating policy.
        loss: DPO's own or IPO's.
        hidden_size: Width of policy and reference.
        num_layers: Their depth.
        sft_learning_rate: Adam's step size while imitating.
        learning_rate: Adam's step size after that.
        noise: Share of demonstrated steps that are wrong, and of those that are written twice.
        seed: Of everything that is random.
    """
    task = ModularSums(wrong_step=noise, repeated_step=noise)
    held_out = ModularSums(split="test")
    tokenizer = CharacterTokenizer(task.alphabet)
    architecture = Architecture.llama(
        tokenizer.vocab_size, hidden_size=hidden_size, num_layers=num_layers, max_positions=64
    )
    model = LanguageModel(architecture=architecture, tokenizer=tokenizer)
    stopping = Stopping(max_tokens=36)
    imitate, improve = Phase(stop=sft_iterations), Phase(sft_iterations)
    return Pipeline(
        name="dpo-arithmetic",
        num_iterations=sft_iterations + dpo_iterations,
        models={"actor": model, "reference": model},
        stages=[
            Demonstrate(task=task, num_prompts=256, phase=imitate),
            Update(SFT(learning_rate=sft_learning_rate, num_minibatches=2), name="imitate", phase=imitate),
            CopyWeights(phase=Phase(sft_iterations - 1, sft_iterations)),
            Generate(
                task=task,
                num_prompts=num_prompts,
                samples_per_prompt=samples_per_prompt,
                stopping=stopping,
                phase=improve,
            ),
            Score(task=task, reward=TaskReward(task), phase=improve),
            Prefer(phase=improve),
            LogProbs(phase=improve),
            Update(DPO(learning_rate=learning_rate, beta=beta, loss=loss), phase=improve),
            EvaluateText(task=held_out, reward=TaskReward(held_out), num_prompts=128, every=20, stopping=stopping),
        ],
        seed=seed,
        checkpoint_every=10,
        keep=Keep(every=None),
    )
