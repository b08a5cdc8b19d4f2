"""What crosses ranks. The only folder that imports mpi4py, and only when an MPI launcher started the process."""

from hpcrl.comm.collectives import Collectives, SingleProcess
from hpcrl.comm.exit_code import close_world, leave
from hpcrl.comm.tree import TreeSum
from hpcrl.comm.waiting import Waiting
from hpcrl.comm.world import launched_under_mpi, open_world

__all__ = [
    "Collectives",
    "SingleProcess",
    "TreeSum",
    "Waiting",
    "close_world",
    "launched_under_mpi",
    "leave",
    "open_world",
]
