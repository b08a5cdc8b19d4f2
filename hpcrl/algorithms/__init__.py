"""Learning algorithms: a loss, an update rule and their knobs. Importing one imports no PyTorch."""

from hpcrl.algorithms.ppo import PPO, Totals

__all__ = ["PPO", "Totals"]
