"""Improve a model from another run's stored responses and scores: nothing is generated to learn from."""

from typing import Literal

from hpcrl import Keep, Pipeline, Update
from hpcrl.algorithms.language_ppo import LanguagePPO
from hpcrl.algorithms.preference import DPO
from hpcrl.algorithms.sft import SFT
from hpcrl.envs.text import ModularSums
from hpcrl.models.language import LanguageModel
from hpcrl.models.language.settings import Stopping
from hpcrl.rewards import TaskReward
from hpcrl.stages import EvaluateText, GroupAdvantage, LogProbs, Prefer


def offline_rlhf(
    inputs: str,
    model: str,
    rule: Literal["best", "dpo", "ppo"] = "best",
    num_iterations: int = 40,
    learning_rate: float = 2e-4,
    evaluate_arithmetic: bool = True,
    evaluate_every: int = 10,
    seed: int = 1,
) -> Pipeline:
    """Any rule, on a run's shards.

    Args:
        inputs: Run folder whose responses and scores are read, oldest first, again and again; it kept them
            (Keep(rollouts=None)), several to a prompt for dpo and ppo.
        model: A Hugging Face folder to begin with, such as hpcrl export writes.
        rule: Imitation of the responses with score 1; DPO on the best and worst to each prompt; or PPO's clipped ratio
            to the policy that wrote them, with GRPO's advantages.
        num_iterations: Each reads one iteration of `inputs`.
        learning_rate: Adam's step size.
        evaluate_arithmetic: Measure on held-out sums modulo 7, the task of the arithmetic pipelines.
        evaluate_every: Iterations between measurements.
        seed: Of everything that is random.
    """
    held_out = ModularSums(split="test")
    evaluate = EvaluateText(
        task=held_out,
        reward=TaskReward(held_out),
        num_prompts=128,
        every=evaluate_every,
        stopping=Stopping(max_tokens=36),
    )
    learn = {
        "best": [Update(SFT(learning_rate=learning_rate, min_score=1.0, num_minibatches=2))],
        "dpo": [Prefer(), LogProbs(), Update(DPO(learning_rate=learning_rate))],
        "ppo": [
            GroupAdvantage(),
            Update(
                LanguagePPO(learning_rate=learning_rate, num_epochs=2, num_minibatches=2, normalize_advantages=False)
            ),
        ],
    }[rule]
    reference = {"reference": LanguageModel(folder=model)} if rule == "dpo" else {}
    return Pipeline(
        name="offline-rlhf",
        num_iterations=num_iterations,
        inputs=inputs,
        models={"actor": LanguageModel(folder=model), **reference},
        stages=[*learn, *([evaluate] if evaluate_arithmetic else [])],
        seed=seed,
        checkpoint_every=10,
        keep=Keep(every=None),
    )
