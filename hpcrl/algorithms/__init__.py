"""Learning algorithms: a loss, an update rule and their knobs. Importing one imports no PyTorch."""

from hpcrl.algorithms.ppo import PPO, Knobs, Totals

__all__ = ["PPO", "Knobs", "Totals"]
