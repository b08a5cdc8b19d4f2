"""A tiny language model: one imitation, then a policy, a critic and a reference, everything that a run of text has."""

from hpcrl import Advantage, Pipeline, Update
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
    GroupAdvantage,
    LogProbs,
    Phase,
    Refine,
    Score,
    Values,
)


def text_tiny(num_iterations: int = 4, seed: int = 5, groups: bool = False, num_epochs: int = 2) -> Pipeline:
    """Tiny; with a critic, or with groups of responses."""
    task = ModularSums(num_terms=2, wrong_step=0.1)
    tokenizer = CharacterTokenizer(task.alphabet)
    architecture = Architecture.llama(
        tokenizer.vocab_size, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=32
    )
    model = LanguageModel(architecture=architecture, tokenizer=tokenizer)
    stopping = Stopping(max_tokens=12)
    imitate, improve = Phase(stop=1), Phase(1)
    if groups:
        advantage = [GroupAdvantage(kind="reinforce++_baseline", phase=improve)]
    else:
        advantage = [
            LogProbs(phase=improve),
            Values(phase=improve),
            Refine(kl_coef=0.05, kl_estimator="k3", score_clip=2.0, phase=improve),
            Advantage(gamma=1.0, gae_lambda=0.95, phase=improve),
            Update(ValueRegression(num_minibatches=2, value_clip_range=0.5), model="critic", name="fit", phase=improve),
        ]
    copies = [CopyWeights(phase=imitate), CopyWeights(target="critic", name="trunk", phase=imitate)]
    critic = LanguageModel(architecture=architecture, tokenizer=tokenizer, heads=("value",))
    return Pipeline(
        name="text-tiny",
        num_iterations=num_iterations,
        models={"actor": model, **({} if groups else {"reference": model, "critic": critic})},
        stages=[
            Demonstrate(task=task, num_prompts=16, phase=imitate),
            Update(SFT(learning_rate=1e-2), name="imitate", phase=imitate),
            *([] if groups else copies),
            Generate(task=task, num_prompts=8, samples_per_prompt=4 if groups else 2, stopping=stopping, phase=improve),
            Score(task=task, reward=TaskReward(task), phase=improve),
            *advantage,
            Update(
                LanguagePPO(num_epochs=num_epochs, num_minibatches=2, aggregation="sequence" if groups else "token"),
                phase=improve,
            ),
            EvaluateText(task=task, reward=TaskReward(task), num_prompts=6, every=2, stopping=stopping),
        ],
        seed=seed,
    )
