"""Two roles in two phases: imitation, then a copy, then more imitation beside the frozen copy's log-probabilities."""

from hpcrl import Pipeline, Update
from hpcrl.algorithms.sft import SFT
from hpcrl.envs.text import ModularSums
from hpcrl.models.language import Architecture, CharacterTokenizer, LanguageModel
from hpcrl.stages import CopyWeights, Demonstrate, LogProbs, Phase


def text_phases(num_iterations: int = 5, seed: int = 3, checkpoint_every: int = 1) -> Pipeline:
    """Tiny."""
    task = ModularSums(wrong_step=0.1, repeated_step=0.1)
    tokenizer = CharacterTokenizer(task.alphabet)
    model = LanguageModel(
        architecture=Architecture.llama(
            tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2, max_positions=64
        ),
        tokenizer=tokenizer,
    )
    rule = SFT(num_epochs=2, num_minibatches=2, learning_rate=1e-3)
    return Pipeline(
        name="text-phases",
        num_iterations=num_iterations,
        models={"actor": model, "reference": model},
        stages=[
            Demonstrate(task=task, num_prompts=16),
            Update(rule, phase=Phase(stop=2), name="imitate"),
            CopyWeights(phase=Phase(1, 2)),
            LogProbs(phase=Phase(2)),
            Update(rule, phase=Phase(2), name="go_on"),
        ],
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
