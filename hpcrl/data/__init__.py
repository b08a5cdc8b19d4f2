"""What flows between stages: packed trajectories, and the plan of blocks and ranks. NumPy only."""

from hpcrl.data.blocks import Blocks
from hpcrl.data.mesh import Mesh
from hpcrl.data.trajectories import Ending, Ragged, Trajectories, concatenate

__all__ = ["Blocks", "Ending", "Mesh", "Ragged", "Trajectories", "concatenate"]
