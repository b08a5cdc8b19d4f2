"""Language model from nothing: imitation of noisy demonstrations, then GRPO or another group rule, without a critic."""

from typing import Literal

from hpcrl import Keep, Pipeline, Update
from hpcrl.algorithms.language_ppo import LanguagePPO
from hpcrl.algorithms.sft import SFT
from hpcrl.envs.text import ModularSums
from hpcrl.models.language import Architecture, CharacterTokenizer, LanguageModel
from hpcrl.models.language.settings import Stopping
from hpcrl.rewards import TaskReward
from hpcrl.stages import Demonstrate, EvaluateText, Generate, GroupAdvantage, Phase, Reached, Score


def grpo_arithmetic(
    sft_iterations: int = 200,
    rl_iterations: int = 100,
    num_prompts: int = 24,
    samples_per_prompt: int = 8,
    kind: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"] = "grpo",
    hidden_size: int = 64,
    num_layers: int = 2,
    sft_learning_rate: float = 3e-3,
    learning_rate: float = 2e-4,
    noise: float = 0.12,
    keep_rollouts: int = 2,
    seed: int = 1,
) -> Pipeline:
    """SFT, then GRPO or one of its relatives, on sums modulo 7 worked out step by step.

    Args:
        sft_iterations: Iterations of imitation, each of 256 demonstrations in two optimiser steps.
        rl_iterations: Iterations of the group rule after it.
        num_prompts: Problems answered in each of these.
        samples_per_prompt: Responses to each, which are compared with each other.
        kind: How.
        hidden_size: Width of the model.
        num_layers: Its depth.
        sft_learning_rate: Adam's step size while imitating.
        learning_rate: Adam's step size after that.
        noise: Share of demonstrated steps that are wrong, and of those that are written twice.
        keep_rollouts: Iterations whose responses stay on disk; 0: all, for pipelines/offline_rlhf.py.
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
    return Pipeline(
        name="grpo-arithmetic",
        num_iterations=sft_iterations + rl_iterations,
        models={"actor": LanguageModel(architecture=architecture, tokenizer=tokenizer)},
        stages=[
            Demonstrate(task=task, num_prompts=256, phase=imitate),
            Update(SFT(learning_rate=sft_learning_rate, num_minibatches=2), name="imitate", phase=imitate),
            Generate(
                task=task,
                num_prompts=num_prompts,
                samples_per_prompt=samples_per_prompt,
                stopping=stopping,
                phase=improve,
            ),
            Score(task=task, reward=TaskReward(task), phase=improve),
            GroupAdvantage(kind=kind, phase=improve),
            Update(
                LanguagePPO(
                    learning_rate=learning_rate,
                    num_epochs=2,
                    num_minibatches=2,
                    # As each rule's paper averages: GRPO by sequence, Dr. GRPO by a constant, the others by token.
                    aggregation={"grpo": "sequence", "dr_grpo": "constant"}.get(kind, "token"),  # type: ignore[arg-type]
                    constant=float(stopping.max_tokens),
                    normalize_advantages=False,
                ),
                phase=improve,
            ),
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
        keep=Keep(every=None, rollouts=keep_rollouts or None),
    )
