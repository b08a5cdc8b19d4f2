"""Your own Hugging Face folder and prompts, improved by a group rule against your own reward."""

from typing import Literal

from hpcrl import Keep, Pipeline, Update
from hpcrl.algorithms.language_ppo import LanguagePPO
from hpcrl.envs.text import JsonLines
from hpcrl.models.language import LanguageModel
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.rewards import FunctionReward
from hpcrl.stages import EvaluateText, Generate, GroupAdvantage, LogProbs, Score


def rlhf_checkpoint(
    model: str,
    prompts: str,
    reward: str,
    num_iterations: int = 100,
    num_prompts: int = 16,
    samples_per_prompt: int = 8,
    max_tokens: int = 256,
    temperature: float = 1.0,
    kind: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"] = "grpo",
    learning_rate: float = 1e-6,
    kl_coef: float = 0.0,
    evaluate_every: int = 20,
    seed: int = 1,
) -> Pipeline:
    """GRPO or a relative, from a folder that transformers opens.

    Args:
        model: The folder: config.json, safetensors, tokenizer.json.
        prompts: A JSONL file; each line has "prompt" (text or messages) and whatever columns the reward reads.
        reward: "module:function" or "file.py:function" of (prompts, responses, columns), a number for each response.
        num_iterations: Iterations of generate, score, update.
        num_prompts: Prompts in each of them.
        samples_per_prompt: Responses to each.
        max_tokens: Of a response.
        temperature: That is sampled with.
        kind: How the responses to a prompt are compared.
        learning_rate: Adam's step size.
        kl_coef: Weight of a divergence from the model as it was, in the loss; above 0 it is kept as a reference.
        evaluate_every: Iterations between evaluations on the first 64 prompts.
        seed: Of everything that is random.
    """
    task = JsonLines(prompts)
    score = FunctionReward(reward)
    stopping = Stopping(max_tokens=max_tokens)
    reference = {"reference": LanguageModel(folder=model)} if kl_coef > 0 else {}
    return Pipeline(
        name="rlhf-checkpoint",
        num_iterations=num_iterations,
        models={"actor": LanguageModel(folder=model), **reference},
        stages=[
            Generate(
                task=task,
                num_prompts=num_prompts,
                samples_per_prompt=samples_per_prompt,
                sampling=Sampling(temperature=temperature),
                stopping=stopping,
            ),
            Score(task=task, reward=score),
            *([LogProbs(temperature=temperature)] if kl_coef > 0 else []),
            GroupAdvantage(kind=kind),
            Update(
                LanguagePPO(
                    learning_rate=learning_rate,
                    kl_coef=kl_coef,
                    temperature=temperature,
                    normalize_advantages=False,
                )
            ),
            EvaluateText(task=task, reward=score, num_prompts=64, every=evaluate_every, stopping=stopping),
        ],
        seed=seed,
        checkpoint_every=10,
        keep=Keep(every=None),
    )
