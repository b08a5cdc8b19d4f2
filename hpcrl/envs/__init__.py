"""Vector environments (Gymnasium, ALE, EnvPool) behind one small interface."""

from hpcrl.envs.interface import Restart, StepResult, VectorEnv
from hpcrl.envs.make import EnvDescription, describe_env, make_env
from hpcrl.envs.spaces import Space

__all__ = ["EnvDescription", "Restart", "Space", "StepResult", "VectorEnv", "describe_env", "make_env"]
