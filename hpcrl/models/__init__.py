"""Networks that act and learn. A configuration builds one; importing a configuration imports no PyTorch."""

from hpcrl.models.cnn import Cnn
from hpcrl.models.mlp import Mlp
from hpcrl.models.policy import Model, ModelConfig, Policy

__all__ = ["Cnn", "Mlp", "Model", "ModelConfig", "Policy"]
